"""Several people at one project: they answer, look at what others answered, change their minds, take answers back."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from connectors.annotation import AnnotationToolError
from connectors.label_studio.person import SimulatedAnnotator
from connectors.mistakes import Mistakes
from deploy.servers import Servers
from tests.system.conftest import TestCampaign

MISTAKES = Mistakes(drop_rate=0.1, add_rate=0.1, shift=0.1)
ACTS = {"answer": 10, "look_again": 3, "correct": 2, "take_back": 1}
"""What people do, and how often."""
PASSWORD = "made for a trial"


@dataclass(slots=True)
class Given:
    """What people did: the answers that must stand at the end, and those that must not.

    Attributes:
        standing: answer -> its task.
        taken_back: answers that nobody may count.
        acts: how often each thing was done.
    """

    standing: dict[int, int] = field(default_factory=dict)
    taken_back: set[int] = field(default_factory=set)
    acts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ACTS, 0))


class Person(SimulatedAnnotator):
    """One of several people; what they give is noted."""

    def note_in(self, given: Given) -> "Person":
        """Note what this person does there."""
        self._given = given
        return self

    def answer(self, rng: random.Random) -> None:
        """Take what is served next."""
        self.label(1)

    def look_again(self, rng: random.Random) -> None:
        """Answer a task that somebody has answered."""
        self._about(rng, "POST", "/api/tasks/{task}/annotations/?project={project}")

    def correct(self, rng: random.Random) -> None:
        """Change an answer."""
        self._about(rng, "PATCH", "/api/annotations/{answer}/")

    def take_back(self, rng: random.Random) -> None:
        """Delete an answer: its task is open again where it was the only one."""
        if not self._given.standing:
            return
        answer = rng.choice(sorted(self._given.standing))
        with self._client() as client:
            client.delete(f"/api/annotations/{answer}/").raise_for_status()
        del self._given.standing[answer]
        self._given.taken_back.add(answer)

    def _about(self, rng: random.Random, method: str, path: str) -> None:
        """Send an answer about a task that has one."""
        if not self._given.standing:
            return
        answer, task = rng.choice(sorted(self._given.standing.items()))
        with self._client() as client:
            project, page = self._open_project(client)
            data = self._request(client, "GET", f"/api/tasks/{task}/")["data"]
            content = self._answer(self._decide(str(data["item_id"]), data, page), page)
            self._request(client, method, path.format(task=task, answer=answer, project=project), json=content)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, headers={"Authorization": f"Token {self._token}"})

    def _request(self, client, method, path, **options):
        answer = super()._request(client, method, path, **options)
        if method == "POST" and "/annotations/" in path:
            self._given.standing[answer["id"]] = answer["task"]
        return answer


class People:
    """Who works at a campaign's project.

    Args:
        tokens: one for each person.
        seed: of what they do, and of their mistakes.
    """

    def __init__(self, campaign: TestCampaign, tokens: Sequence[str], seed: int) -> None:
        self.given = Given()
        self._rng = random.Random(seed)
        self._persons = [
            Person(
                url=campaign.servers.label_studio_url,
                token=token,
                project=campaign.name,
                answers=campaign.labels(),
                error_rate=0.15,
                skip_rate=0.05,
                mistakes=MISTAKES,
                seed=seed + place,
            ).note_in(self.given)
            for place, token in enumerate(tokens)
        ]

    @contextmanager
    def at_work(self, *, pause: float = 0.3) -> Iterator[None]:
        """Let them work for as long as the block lasts; what they cannot do is an error at its end."""
        over, errors = threading.Event(), []

        def work() -> None:
            try:
                while not over.wait(self._rng.uniform(0, 2 * pause)):
                    self._act()
            except Exception as exc:
                errors.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if errors:
            raise errors[0]

    def finish(self) -> None:
        """Answer all that is open."""
        self._persons[0].label()

    def _act(self) -> None:
        act = self._rng.choices(list(ACTS), weights=list(ACTS.values()))[0]
        person = self._rng.choice(self._persons)
        getattr(person, act)(self._rng)
        self.given.acts[act] += 1


def sign_up(servers: Servers, token: str, n: int) -> list[str]:
    """The tokens of n people, of whom the first is the one whose token this is; new accounts for the others."""
    with httpx.Client(base_url=servers.label_studio_url, headers={"Authorization": f"Token {token}"}) as owner:
        known = {user["email"] for user in owner.get("/api/users/").raise_for_status().json()}
        invitation = owner.get("/api/invite").raise_for_status().json()["invite_url"]
    emails = [f"person-{place}@labelcycle.local" for place in range(1, n)]
    return [token, *(_join(servers, email, invitation, is_new=email not in known) for email in emails)]


def _join(servers: Servers, email: str, invitation: str, *, is_new: bool) -> str:
    """The token of a person who signs up, or logs in."""
    page = invitation if is_new else "/user/login/"
    with httpx.Client(base_url=servers.label_studio_url, follow_redirects=True, timeout=60) as browser:
        browser.get(page).raise_for_status()
        form = {"email": email, "password": PASSWORD, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        browser.post(page, data=form, headers={"Referer": servers.label_studio_url}).raise_for_status()
        answer = browser.get("/api/current-user/token")
    if answer.is_error:
        raise AnnotationToolError(f"{email} cannot log in to {servers.label_studio_url}")
    return str(answer.json()["token"])
