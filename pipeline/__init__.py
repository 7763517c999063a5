"""The rules of the loop: functions on tensors and tables, with no disk, no server and no clock."""
