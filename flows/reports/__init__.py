"""Pages and tables that people read about rounds and replays."""
