//! Tells the service manager how the helper is (sd_notify(3)): `systemctl status` shows the state in words. Where
//! there is none to tell, nothing happens.

use culvert_protocol::{Change, State};
use sd_notify::NotifyState;
use tokio::sync::watch;

/// True where two installations may have a helper each (launchd: the package's and the app's), of which the second one
/// ends in peace.
pub const STEPS_BACK: bool = cfg!(target_os = "macos");

/// Says that the helper serves, and then each state, until the helper ends.
pub async fn tell(mut changes: watch::Receiver<Change>) {
    say(&[NotifyState::Ready]);
    loop {
        let words = words(&changes.borrow_and_update());
        say(&[NotifyState::Status(&words)]);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Says that the helper undoes its changes and ends.
pub fn tell_end() {
    say(&[NotifyState::Stopping]);
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

fn words(change: &Change) -> String {
    let state = change.state.word().replace('_', " ");
    match (&change.profile, &change.state) {
        (
            _,
            State::Failed { problem } | State::Blocked { cause: problem } | State::Reconnecting { cause: problem, .. },
        ) => {
            format!("{state}: {problem}")
        }
        (Some(profile), State::Connected { .. } | State::Connecting { .. }) => format!("{state}, profile {profile}"),
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_protocol::{Problem, Timestamp, code};

    #[test]
    fn the_state_is_told_in_words_on_one_line() {
        let told = |state| words(&Change { at: Timestamp::UNIX_EPOCH, profile: Some("acme".into()), state });
        assert_eq!(told(State::Connected { since: Timestamp::UNIX_EPOCH }), "connected, profile acme");
        assert_eq!(told(State::NotEnrolled), "not enrolled");
        let blocked = told(State::Blocked { cause: Problem::new(code::LOCKDOWN) });
        assert!(blocked.starts_with("blocked: Lockdown is on") && !blocked.contains('\n'), "{blocked}");
    }
}
