//! Many clients that behave as helpers do: the helper's own supervisor decides when each dials, tests its
//! link with an echo, gives it up and waits. What a helper does to its machine is left out.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use culvert_helper::dial::{cause_of_down, cause_of_refusal};
use culvert_helper::health::Counters;
use culvert_helper::session::WELCOME_WITHIN;
use culvert_helper::supervisor::{Action, Cause, Input, Now, Supervisor};
use culvert_lab::random::Random;
use culvert_protocol::{Problem, State, Step, code};
use culvert_tunnel::close::Close;
use culvert_tunnel::control::{self, FromServer};
use culvert_tunnel::shard::mailbox::{Event, LinkId};
use culvert_tunnel::transport::ClientTransport;
use time::OffsetDateTime;

use crate::measure::{Counts, count};
use crate::schedule::Schedule;
use crate::wire::{Wire, hello};

/// Dials a turn. The machines of a herd dial side by side, so its first packets go before anything else is
/// done, but what comes in meanwhile must not wait for all of them.
const DIALS_A_TURN: usize = 1024;

/// What a client looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has not been told to connect.
    Idle,
    /// An attempt is under way.
    Dialling,
    /// The next attempt waits for its time.
    Waiting,
    /// The gateway has welcomed it and an echo has come back.
    Open,
    /// The gateway's verdict was final.
    Stopped,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// No link.
    None,
    /// Waits for its turn to dial.
    Queued,
    Handshake(LinkId),
    /// Hello is said.
    Hello {
        link: LinkId,
        due: Instant,
    },
    Live(LinkId),
}

impl Stage {
    fn link(self) -> Option<LinkId> {
        match self {
            Self::None | Self::Queued => None,
            Self::Handshake(link) | Self::Hello { link, .. } | Self::Live(link) => Some(link),
        }
    }
}

#[derive(Debug)]
struct Client {
    supervisor: Supervisor,
    stage: Stage,
    standing: Standing,
    /// Since when it is not served, while it wants to be.
    without: Option<Instant>,
}

impl Client {
    fn new() -> Self {
        Self { supervisor: Supervisor::new(true), stage: Stage::None, standing: Standing::Idle, without: None }
    }
}

/// All clients, and what has become of them so far.
pub(crate) struct Herd {
    pub(crate) wire: Wire,
    clients: Vec<Client>,
    transports: Vec<ClientTransport>,
    server_name: String,
    hello: Vec<u8>,
    due: Schedule,
    dials: VecDeque<usize>,
    random: Random,
    /// By [`Standing`].
    standings: [usize; 5],
    /// Open sessions that ended, by why.
    pub(crate) lost: Counts,
    /// Attempts that failed, by why.
    pub(crate) failed: Counts,
    /// Clients whose open session ended with a final verdict, and which.
    pub(crate) stopped: Vec<(usize, String)>,
    /// How long each client that is served again was not.
    pub(crate) outages: Vec<Duration>,
}

impl Herd {
    pub(crate) fn new(wire: Wire, transports: Vec<ClientTransport>, server_name: String) -> anyhow::Result<Self> {
        let count = transports.len();
        let mut standings = [0; 5];
        standings[Standing::Idle as usize] = count;
        Ok(Self {
            wire,
            clients: (0..count).map(|_| Client::new()).collect(),
            transports,
            server_name,
            hello: hello()?,
            due: Schedule::new(count),
            dials: VecDeque::new(),
            random: Random::new(1),
            standings,
            lost: Counts::new(),
            failed: Counts::new(),
            stopped: Vec::new(),
            outages: Vec::new(),
        })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// How many stand so.
    pub(crate) fn count(&self, standing: Standing) -> usize {
        self.standings[standing as usize]
    }

    /// Tells a client to connect, and to stay so.
    pub(crate) fn connect(&mut self, now: Instant, client: usize) {
        self.give(now, client, Input::Connect, "");
    }

    /// Every client loses its connection without a word, and connects anew at once.
    pub(crate) fn forget(&mut self) -> anyhow::Result<()> {
        self.wire.forget()?; // takes its time
        self.dials.clear();
        self.clients.fill_with(Client::new);
        self.standings = [0; 5];
        self.standings[Standing::Idle as usize] = self.clients.len();
        self.outages.clear();
        let now = Instant::now();
        for client in 0..self.clients.len() {
            self.connect(now, client);
        }
        Ok(())
    }

    /// Waits until something can be done, at most until `due`.
    pub(crate) fn wait(&mut self, due: Instant) -> anyhow::Result<()> {
        let due =
            if self.dials.is_empty() { self.due.next().map_or(due, |next| next.min(due)) } else { Instant::now() };
        self.wire.wait(Some(due))
    }

    /// One turn at `now`: what came in, what is due, what goes out.
    pub(crate) fn turn(&mut self, now: Instant) {
        let began = Instant::now();
        self.wire.receive(now);
        while let Some((client, event)) = self.wire.next_event(now) {
            self.on_event(now, client, event);
        }
        while let Some(client) = self.due.expired(now) {
            self.on_due(now, client);
        }
        for _ in 0..DIALS_A_TURN {
            let Some(client) = self.dials.pop_front() else { break };
            // So many dials take their time, and QUIC measures its own from here.
            self.dial(now + began.elapsed(), client);
        }
        self.wire.transmit(now + began.elapsed());
    }

    fn dial(&mut self, now: Instant, client: usize) {
        if !matches!(self.clients[client].stage, Stage::Queued) {
            return; // given up while it waited
        }
        match self.wire.dial(now, client, &self.server_name, &self.transports[client]) {
            Ok(link) => {
                self.clients[client].stage = Stage::Handshake(link);
                self.give(now, client, Input::Reached(Step::Handshake), "");
            }
            Err(down) => {
                self.clients[client].stage = Stage::None;
                let lost = Input::Lost(cause_of_down(&down, self.wire.gateway()));
                self.give(now, client, lost, down.word());
            }
        }
    }

    fn on_event(&mut self, now: Instant, client: usize, event: Event) {
        let stage = self.clients[client].stage;
        match event {
            Event::Established(established) => {
                if !matches!(stage, Stage::Handshake(link) if link == established.link) {
                    return;
                }
                self.wire.send(now, established.link, &self.hello);
                self.clients[client].stage = Stage::Hello { link: established.link, due: now + WELCOME_WITHIN };
                self.give(now, client, Input::Reached(Step::Welcome), "");
            }
            Event::Frame { link, payload } if stage.link() == Some(link) => match control::decode(&payload) {
                Ok(FromServer::Welcome(_)) if matches!(stage, Stage::Hello { .. }) => {
                    self.clients[client].stage = Stage::Live(link);
                    self.give(now, client, Input::Ready { preferred: true }, "");
                }
                Ok(FromServer::Refused(refused)) => {
                    self.hang_up(now, client);
                    let word = refused.close().word();
                    self.give(now, client, Input::Lost(cause_of_refusal(&refused)), word);
                }
                _ => {}
            },
            Event::Echo { link, .. } if matches!(stage, Stage::Live(live) if live == link) => {
                self.give(now, client, Input::Echo, "");
            }
            Event::Closed { link, down, .. } if stage.link() == Some(link) => {
                self.clients[client].stage = Stage::None;
                let mut cause = cause_of_down(&down, self.wire.gateway());
                // As in the helper: before TLS has proved who answers, nothing is final.
                cause.verdict &= !matches!(stage, Stage::Handshake(_));
                self.give(now, client, Input::Lost(cause), down.word());
            }
            _ => {} // of a link that the client has given up
        }
    }

    fn on_due(&mut self, now: Instant, client: usize) {
        match self.clients[client].stage {
            Stage::Hello { due, .. } if now >= due => {
                self.hang_up(now, client);
                let problem = Problem::new(code::NO_ANSWER);
                self.give(now, client, Input::Lost(Cause { problem, verdict: false, not_before: None }), "no_welcome");
            }
            _ => self.give(now, client, Input::Timeout, "silent"),
        }
    }

    /// Gives the supervisor an input and does what it says. `why` names what an input may end.
    fn give(&mut self, now: Instant, client: usize, input: Input, why: &str) {
        let utc = OffsetDateTime::UNIX_EPOCH; // only shown to people
        let mut next = Some(input);
        while let Some(input) = next.take() {
            let random = self.random.next();
            let actions = self.clients[client].supervisor.handle(input, Now { mono: now, utc }, random);
            for action in actions {
                // At most one action of a list is answered.
                next = self.perform(now, client, action).or(next);
            }
        }
        self.note(now, client, why);
    }

    fn perform(&mut self, now: Instant, client: usize, action: Action) -> Option<Input> {
        match action {
            Action::Attempt => {
                self.clients[client].stage = Stage::Queued;
                self.dials.push_back(client);
                None
            }
            Action::Abandon => {
                self.hang_up(now, client);
                None
            }
            Action::Echo => {
                if let Stage::Live(link) = self.clients[client].stage {
                    self.wire.echo(now, link);
                }
                None
            }
            // No inner packets: it rests.
            // No client here ever hears that its path has changed.
            Action::Rebind | Action::Beside | Action::Prefer | Action::Enough | Action::LookForPortal => None,
            Action::Inspect => Some(Input::Counters(Counters::default())),
            Action::Undo => {
                self.hang_up(now, client);
                Some(Input::Undone(None))
            }
        }
    }

    fn hang_up(&mut self, now: Instant, client: usize) {
        let stage = std::mem::replace(&mut self.clients[client].stage, Stage::None);
        if let Some(link) = stage.link() {
            self.wire.close(now, link, Close::Goodbye);
        }
    }

    /// Keeps the books after an input.
    fn note(&mut self, now: Instant, number: usize, why: &str) {
        let client = &mut self.clients[number];
        let due = match client.stage {
            Stage::Hello { due, .. } => Some(due),
            _ => None,
        };
        self.due.set(number, [client.supervisor.poll_timeout(), due].into_iter().flatten().min());
        let (before, after) = (client.standing, standing(&client.supervisor.state()));
        client.standing = after;
        self.standings[before as usize] -= 1;
        self.standings[after as usize] += 1;
        match (before, after) {
            (Standing::Open, Standing::Open) => {}
            (_, Standing::Open) => self.outages.extend(client.without.take().map(|since| now - since)),
            (Standing::Open, _) => {
                client.without = Some(now);
                count(&mut self.lost, why);
                if after == Standing::Stopped {
                    self.stopped.push((number, why.to_owned()));
                }
            }
            (Standing::Idle, _) => client.without = Some(now),
            (Standing::Dialling, Standing::Waiting | Standing::Stopped) => count(&mut self.failed, why),
            _ => {}
        }
    }
}

fn standing(state: &State) -> Standing {
    match state {
        State::Connected { .. } => Standing::Open,
        State::Reconnecting { next_at: Some(_), .. } => Standing::Waiting,
        State::Connecting { .. } | State::Reconnecting { .. } => Standing::Dialling,
        State::Failed { .. } => Standing::Stopped,
        _ => Standing::Idle,
    }
}

#[cfg(test)]
mod tests;
