//! `enrol`: reads an invitation and has the helper trade it for an identity.

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use culvert_protocol::{Event, MAX_FRAME, Problem, Request, code};
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::{Enrol, dial, output, show};

pub(crate) async fn enrol(socket: &Path, arguments: Enrol) -> Result<ExitCode, Failure> {
    let given = arguments.invitation.filter(|invitation| invitation != "-");
    let on_command_line = given.is_some();
    let invitation = match given {
        Some(invitation) => invitation,
        None => {
            drop(dial(socket).await?); // so that nobody types an invitation for nothing
            read_aside().await?
        }
    };
    let mut client = dial(socket).await?; // only now: the helper hangs up on callers that say nothing for long
    let request = Request::Enrol { invitation, device_name: arguments.name };
    let late = |_| {
        let sentence = format!("No end of the enrolment after {} s", arguments.timeout.as_secs_f32());
        Problem::new(code::NO_ANSWER).because(sentence).hint("Look at culvert status before you try again")
    };
    let enrolled = timeout(arguments.timeout, client.request(request)).await.map_err(late)?;
    if on_command_line {
        output::message(
            "note: other users of this machine could see the invitation in the process list; it is worth nothing \
             once used. `culvert enrol -` reads it from stdin",
        );
    }
    let Event::Enrolled { profile, gateway, device, certificate_until } = enrolled? else {
        return Err(Problem::new(code::HELPER_VERSION).into());
    };
    let until = show::date(certificate_until, OffsetDateTime::now_utc());
    output::text(&format!("Enrolled with {gateway} as {device} (profile {profile}, access until {until})"))?;
    output::message("Connect with: culvert connect");
    Ok(ExitCode::SUCCESS)
}

/// Reads on a thread of its own, so that Ctrl-C is heard meanwhile. A plain one: the runtime would
/// wait for a blocking task of its own before the process may end.
async fn read_aside() -> Result<String, Failure> {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || tell.send(read_invitation()));
    told.await.map_err(|_| Problem::new(code::INTERNAL))?
}

/// The whole of stdin; on a terminal one line, after a word of what is wanted.
fn read_invitation() -> Result<String, Failure> {
    let mut text = String::new();
    let read = if std::io::stdin().is_terminal() {
        output::message("Paste the invitation and press Return:");
        std::io::stdin().read_line(&mut text)
    } else {
        std::io::stdin().lock().take(MAX_FRAME as u64 / 2).read_to_string(&mut text)
    };
    read.map_err(|error| Problem::new(code::INVITATION).because(format!("The invitation cannot be read: {error}")))?;
    if text.trim().is_empty() {
        let hint = "Pass it on stdin or as an argument: culvert enrol INVITE";
        return Err(Problem::new(code::INVITATION).because("There is no invitation to read").hint(hint).into());
    }
    Ok(text.trim().to_owned())
}
