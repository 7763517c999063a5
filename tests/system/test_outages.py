"""Servers that go away in the middle of a round."""

import pandas as pd
import pytest

from flows.artefacts import ANSWERS, PUSHED


def run_impatiently(file: str) -> None:
    """Run a round with short waits between attempts."""
    import connectors.label_studio.client
    from flows.flow import run_round

    connectors.label_studio.client._FIRST_WAIT_SECONDS = 0.01
    connectors.label_studio.client._LONGEST_WAIT_SECONDS = 0.01
    connectors.label_studio.client._SETTLE_SECONDS = 0.05
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


@pytest.mark.parametrize("cut", ["GET /api/projects", "POST", "import"])
def test_label_studio_down_at_push_is_told_and_the_next_run_pushes(outage, fork, cut):
    outage.cut = cut
    _, error = fork(run_impatiently, str(outage.campaign.file))
    assert error.startswith("AnnotationToolUnavailable: Label Studio at http://127.0.0.1:")
    assert outage.campaign.token not in error
    assert not outage.campaign.folder.round(0).has(PUSHED)
    outage.cut = ""
    assert fork(run_impatiently, str(outage.campaign.file)) == (0, "")
    pulled = outage.campaign.pull(0)
    assert sorted(pulled.task_ids) == sorted(outage.campaign.batch(0))
    assert (len(pulled.task_ids), pulled.doubles, pulled.notes) == (22, {}, ())


def test_label_studio_down_at_collect_is_told_and_the_next_run_collects(outage, fork):
    assert fork(run_impatiently, str(outage.campaign.file)) == (0, "")
    labelled = outage.campaign.label().item_ids
    outage.cut = "fields=all"
    _, error = fork(run_impatiently, str(outage.campaign.file))
    assert error.startswith("AnnotationToolUnavailable")
    assert not outage.campaign.folder.round(0).has(ANSWERS)
    outage.cut = ""
    assert fork(run_impatiently, str(outage.campaign.file)) == (0, "")
    collected = pd.read_parquet(outage.campaign.folder.round(0).path_of(ANSWERS))
    assert sorted(collected["item_id"]) == sorted(labelled)
