//! `connect` and `disconnect`: note the wish, then wait for its end. Success is never said early.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use culvert_protocol::{Client, Event, Problem, Request, State, code};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::{Connect, ask, ask_status, dial, keychain, output, show};

/// What lifts a block that no helper is there to lift.
const RECOVER: &str =
    "Lift it without the helper: sudo culvert-helper recover (or: sudo nft delete table inet culvert)";

pub(crate) async fn connect(socket: &Path, arguments: Connect) -> Result<ExitCode, Failure> {
    let mut client = dial(socket).await?;
    let profile = arguments.profile;
    // Who is connected already needs no key, so that what a keychain says counts only if the helper wants one.
    let changed = match keychain::key_of(&mut client, profile.as_deref()).await {
        Ok(key) => wish(&mut client, Request::Connect { profile, key }).await?,
        Err(failure) => match wish(&mut client, Request::Connect { profile, key: None }).await {
            Err(Failure::Problem(problem)) if problem.code == code::LOCKED => return Err(failure),
            done => done?,
        },
    };
    // Watching begins after the wish: what is told from here on is about it.
    let status = ask_status(&mut client, Request::Watch).await?;
    client.forget_events();
    let gateway = status.gateway.map_or_else(|| "the gateway".to_owned(), |gateway| gateway.name);
    if arguments.no_wait {
        output::message(&show::headline(&status.state, &gateway));
        return Ok(ExitCode::SUCCESS);
    }
    let (patience, patient) = match arguments.wait {
        Some(wait) => (wait, true),
        None => (arguments.timeout, false),
    };
    let mut wait = Wait { patient, cause: None };
    let reached = timeout(patience, wait.until_connected(&mut client, status.state)).await;
    match reached {
        Ok(reached) => reached?,
        Err(_) => return Err(wait.too_long(patience).into()),
    }
    output::message(&if changed {
        format!("Connected to {gateway}")
    } else {
        format!("Already connected to {gateway}")
    });
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn disconnect(socket: &Path, unblock: bool, patience: Duration) -> Result<ExitCode, Failure> {
    let mut client = match dial(socket).await {
        Err(Failure::Problem(problem)) if unblock && problem.code == code::HELPER => {
            return Err(problem.hint(RECOVER).into());
        }
        client => client?,
    };
    let changed = wish(&mut client, Request::Disconnect { unblock }).await?;
    let status = ask_status(&mut client, Request::Watch).await?;
    client.forget_events();
    let undone = async {
        let mut state = status.state;
        loop {
            match state {
                State::Disconnected | State::NotEnrolled => return Ok::<bool, Failure>(false),
                State::Blocked { cause } if cause.code == code::LOCKDOWN => return Ok(true),
                State::Failed { problem } => return Err(problem.into()), // something could not be undone
                _ => state = next_state(&mut client).await?,
            }
        }
    };
    let locked = timeout(patience, undone).await.map_err(|_| {
        Problem::new(code::SYSTEM).because("The helper is still undoing its changes").hint("See culvert status")
    })??;
    output::message(if changed { "Disconnected" } else { "Already disconnected" });
    if locked {
        output::message(&Problem::new(code::LOCKDOWN).to_string());
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells a wish; true when it was news.
async fn wish(client: &mut Client, request: Request) -> Result<bool, Failure> {
    match ask(client, request).await? {
        Event::Done { changed } => Ok(changed),
        other => Err(Failure::unexpected(&other)),
    }
}

async fn next_state(client: &mut Client) -> Result<State, Failure> {
    loop {
        if let Event::Change(change) = client.next_event().await? {
            return Ok(change.state);
        }
    }
}

struct Wait {
    /// Waits through causes that time may heal.
    patient: bool,
    cause: Option<Problem>,
}

impl Wait {
    async fn until_connected(&mut self, client: &mut Client, mut state: State) -> Result<(), Failure> {
        loop {
            match state {
                State::Connected { .. } => return Ok(()),
                State::Failed { problem } => return Err(problem.into()),
                State::Blocked { cause } => {
                    output::message(
                        "Nothing leaves beside the tunnel until you connect, or lift it: culvert disconnect",
                    );
                    return Err(cause.into());
                }
                State::Reconnecting { cause, .. } => self.heard(cause)?,
                State::Offline => self.heard(Problem::new(code::NO_NETWORK))?,
                State::PortalSignIn { .. } => self.heard(Problem::new(code::PORTAL))?,
                State::Disconnected => {
                    let sentence = "Somebody disconnected before the connection was up";
                    return Err(Problem::new(code::GOODBYE).because(sentence).hint("Try again").into());
                }
                State::NotEnrolled => return Err(Problem::new(code::NOT_ENROLLED).into()),
                State::Connecting { .. } | State::Disconnecting | State::Paused => {}
            }
            state = next_state(client).await?;
        }
    }

    fn heard(&mut self, cause: Problem) -> Result<(), Failure> {
        if !self.patient {
            return Err(cause.into());
        }
        self.cause = Some(cause);
        Ok(())
    }

    /// The last cause, if there was one, and how long it was waited for.
    fn too_long(self, patience: Duration) -> Problem {
        let waited = format!("Not connected after {} s", patience.as_secs_f32());
        match self.cause {
            Some(cause) => {
                let sentence = format!("{waited}: {}", cause.cause);
                cause.because(sentence)
            }
            None => Problem::new(code::NO_ANSWER).because(waited),
        }
    }
}
