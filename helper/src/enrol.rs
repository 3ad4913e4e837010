//! Trades an invitation for an identity. The device key is made here and never leaves the machine.
//!
//! Runs beside a live session, on a shard of its own. Nothing is kept before both ends have proven
//! that they hold the invitation, so a failed enrolment loses nothing.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_protocol::{Code, Problem, code};
use culvert_tunnel::close::{Close, Down};
use culvert_tunnel::control::{decode, encode};
use culvert_tunnel::enrol::{EnrolError, Enrollee, Enrolment, FromEnrollee, FromEnroller, Step};
use culvert_tunnel::identity::{Credential, DeviceKey};
use culvert_tunnel::invitation::Invitation;
use culvert_tunnel::shard::RunningShard;
use culvert_tunnel::shard::mailbox::{Command, Established, Event, LinkId};
use culvert_tunnel::transport::{ClientTransport, Tuning};
use tokio::time::timeout;

use crate::device::Tun;
use crate::dial::{HANDSHAKE_WITHIN, cause_of_down, cause_of_refusal, host, resolve, start_shard};
use crate::names::Names;
use crate::profile::Profile;

/// How long the conversation may take once the gateway has answered.
const CONVERSATION_WITHIN: Duration = Duration::from_secs(15);

/// Enrols this machine. The profile that comes back has no name yet and is not saved.
///
/// # Errors
/// One sentence with its code; the invitation is spent only if the gateway said so.
pub async fn enrol(invitation: &str, device_name: &str, names: &Names, fwmark: u32) -> Result<Profile, Problem> {
    let invitation: Invitation = invitation.trim().parse().map_err(|error| {
        let sentence = format!("{error}");
        let (cause, hint) = sentence.split_once("; ").unwrap_or((&sentence, "ask for a new one"));
        Problem::new(code::INVITATION).because(capital(cause)).hint(capital(hint))
    })?;
    let key = DeviceKey::generate().map_err(|error| internal(&error))?;
    let candidates = candidates(&invitation, names).await?;
    let mut shard = start_shard(fwmark)?;
    let enrolled = converse(&mut shard, &invitation, candidates, &key, device_name).await;
    let stop = Command::Stop { code: Close::Goodbye, reason: String::new() };
    let _ = shard.handle.send(stop).await; // an ended thread needs no stopping
    while shard.events.recv().await.is_some() {}
    profile(enrolled?, key)
}

/// Each address with the name that its certificate must carry.
async fn candidates(invitation: &Invitation, names: &Names) -> Result<Vec<(SocketAddr, String)>, Problem> {
    let mut candidates = Vec::new();
    let mut last = Problem::new(code::NAME);
    for endpoint in &invitation.endpoints {
        match resolve(std::slice::from_ref(endpoint), names).await {
            Ok(found) => candidates.extend(found.into_iter().map(|it| (it.address, host(endpoint).to_owned()))),
            Err(problem) => last = problem,
        }
    }
    if candidates.is_empty() { Err(last) } else { Ok(candidates) }
}

async fn converse(
    shard: &mut RunningShard<Tun>,
    invitation: &Invitation,
    candidates: Vec<(SocketAddr, String)>,
    key: &DeviceKey,
    device_name: &str,
) -> Result<Enrolment, Problem> {
    let transport =
        ClientTransport::enrolment(vec![invitation.pin], Tuning::default()).map_err(|error| internal(&error))?;
    let mut last = Problem::new(code::NO_ANSWER);
    for (remote, server_name) in candidates {
        match dial(shard, remote, server_name, transport.clone()).await {
            Ok(established) => {
                let talk = talk(shard, &established, invitation, key, device_name);
                let late =
                    |_| Problem::new(code::NO_ANSWER).because("The gateway did not finish the enrolment in time");
                return timeout(CONVERSATION_WITHIN, talk).await.map_err(late)?;
            }
            Err(problem) => last = problem,
        }
    }
    Err(last)
}

async fn dial(
    shard: &mut RunningShard<Tun>,
    remote: SocketAddr,
    server_name: String,
    transport: ClientTransport,
) -> Result<Established, Problem> {
    let dialled = shard.handle.dial(remote, server_name, transport).await;
    let link = dialled.map_err(|down| cause_of_down(&down, remote).problem)?;
    let answered = timeout(HANDSHAKE_WITHIN, async {
        loop {
            match shard.events.recv().await {
                Some(Event::Established(established)) if established.link == link => return Ok(established),
                Some(Event::Closed { link: closed, down, .. }) if closed == link => {
                    return Err(unanswered(&down, remote));
                }
                Some(_) => {}
                None => return Err(Problem::new(code::INTERNAL)),
            }
        }
    });
    if let Ok(answer) = answered.await {
        return answer;
    }
    close(shard, link, Close::Timeout).await;
    let sentence = format!("No reply from {remote} for {} s", HANDSHAKE_WITHIN.as_secs());
    Err(Problem::new(code::NO_ANSWER).because(sentence).hint("It may be down, or this network blocks UDP"))
}

async fn talk(
    shard: &mut RunningShard<Tun>,
    established: &Established,
    invitation: &Invitation,
    key: &DeviceKey,
    device_name: &str,
) -> Result<Enrolment, Problem> {
    let (link, remote) = (established.link, established.remote);
    let started = Enrollee::start(invitation, key, device_name, std::env::consts::OS, established.exporter);
    let (mut enrollee, begin) = started.map_err(|error| internal(&error))?;
    send(shard, link, &begin).await?;
    loop {
        let payload = match shard.events.recv().await {
            Some(Event::Frame { link: from, payload }) if from == link => payload,
            Some(Event::Closed { link: closed, down, .. }) if closed == link => {
                return Err(cause_of_down(&down, remote).problem);
            }
            Some(_) => continue,
            None => return Err(Problem::new(code::INTERNAL)),
        };
        let step = match decode::<FromEnroller>(&payload) {
            Ok(message) => enrollee.on_message(message),
            Err(_) => Err(EnrolError::Unexpected),
        };
        match step {
            Ok(Step::Send(message)) => send(shard, link, &message).await?,
            Ok(Step::Done(enrolment)) => {
                close(shard, link, Close::Goodbye).await;
                return Ok(enrolment);
            }
            Err(error) => {
                close(shard, link, error.close()).await;
                return Err(problem(&error));
            }
        }
    }
}

async fn send(shard: &RunningShard<Tun>, link: LinkId, message: &FromEnrollee) -> Result<(), Problem> {
    let frame = encode(message).map_err(|error| internal(&error))?;
    shard.handle.send(Command::Send { link, frame }).await.map_err(|error| internal(&error))
}

async fn close(shard: &RunningShard<Tun>, link: LinkId, code: Close) {
    let _ = shard.handle.send(Command::Close { link, code, reason: String::new() }).await;
}

fn profile(enrolment: Enrolment, key: DeviceKey) -> Result<Profile, Problem> {
    let chain = enrolment.chain.into_iter().map(Into::into).collect();
    let credential = Credential::new(chain, key).map_err(|error| internal(&error))?;
    Ok(Profile {
        name: String::new(),
        gateway: enrolment.gateway,
        endpoints: enrolment.endpoints,
        server_name: enrolment.server_name,
        device_id: enrolment.device_id,
        device_name: enrolment.device_name,
        user: enrolment.user,
        chain_pem: credential.chain_pem(),
        key_pem: credential.key_pem().expose().into(),
        sealed: None,
        authorities_pem: String::new(),
        carried: None,
    })
}

/// Why no handshake came about. What the gateway fell short of is the invitation here.
fn unanswered(down: &Down, remote: SocketAddr) -> Problem {
    let problem = cause_of_down(down, remote).problem;
    if down.word() != "unknown_ca" {
        return problem;
    }
    problem
        .because(format!("{remote} could not prove that it issued this invitation; nothing was sent"))
        .hint("Ask for a new invitation, and say which gateway answered")
}

fn problem(error: &EnrolError) -> Problem {
    match error {
        EnrolError::Refused(refused) => {
            let problem = cause_of_refusal(refused).problem;
            let words = problem.cause.clone();
            // The gateway's sentence says both why and what to do.
            match words.split_once("; ") {
                Some((cause, hint)) => problem.because(cause).hint(capital(hint)),
                None => problem,
            }
        }
        other => Problem::new(Code(other.ecode().0)).because(capital(&other.to_string())),
    }
}

fn internal(error: &dyn std::error::Error) -> Problem {
    Problem::new(code::INTERNAL).because(format!("Enrolment failed here: {error}"))
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
