"""Servers that go away in the middle of a round."""

import pandas as pd
import pytest

from flows.artefacts import ANSWERS, PUSHED


def run_impatiently(file: str) -> None:
    """Run a round with short waits between attempts."""
    from connectors.label_studio import connection, mending
    from flows import tasks
    from flows.flow import run_round

    connection.FIRST_WAIT_SECONDS = 0.01
    connection.LONGEST_WAIT_SECONDS = 0.01
    mending.SETTLE_SECONDS = 0.05
    tasks.RETRY_DELAY_SECONDS = 0.01
    run_round(file)


@pytest.fixture
def outage(servers, relay, make_campaign):
    """A campaign whose way to Label Studio is cut wherever `cut` is found in the request, while it is not empty."""

    class Outage:
        cut = ""

        def misbehave(self, handler, _body) -> bool:
            if not self.cut or self.cut not in f"{handler.command} {handler.path}":
                return False
            handler.hang_up()
            return True

    state = Outage()
    with relay(servers.label_studio_url, state.misbehave) as url:
        state.campaign = make_campaign(label_studio=url)
        yield state


def test_label_studio_that_goes_away_at_any_step_is_told_and_the_next_run_goes_on(outage, fork):
    campaign = outage.campaign
    for cut in ("GET /api/projects", "POST", "import"):
        check_outage(outage, fork, cut)
        assert not campaign.folder.round(0).has(PUSHED)
    outage.cut = ""
    assert fork(run_impatiently, str(campaign.file)) == (0, "")
    pulled = campaign.pull(0)
    assert sorted(ask.item_id for ask in pulled.task_ids) == sorted(campaign.batch(0))
    assert (len(pulled.task_ids), pulled.doubles, pulled.notes) == (22, {}, ())

    labelled = campaign.label().item_ids
    check_outage(outage, fork, "fields=all")
    assert not campaign.folder.round(0).has(ANSWERS)
    outage.cut = ""
    assert fork(run_impatiently, str(campaign.file)) == (0, "")
    collected = pd.read_parquet(campaign.folder.round(0).path_of(ANSWERS))
    assert sorted(collected["item_id"]) == sorted(labelled)


def check_outage(outage, fork, cut: str) -> None:
    outage.cut = cut
    _, error = fork(run_impatiently, str(outage.campaign.file))
    assert error.startswith("AnnotationToolUnavailable: Label Studio at http://127.0.0.1:"), cut
    assert outage.campaign.token not in error
