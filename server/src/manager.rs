//! Tells the service manager how the gateway is (sd_notify(3)). Where there is none to tell, nothing happens.

use sd_notify::NotifyState;

/// True when there is one to tell.
pub fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// The gateway serves: for the first time, or again after [`reloading`].
pub fn ready() {
    say(&[NotifyState::Ready]);
}

/// The configuration is about to be read again; [`ready`] says when that is done, whatever came of it.
///
/// The time lets systemd 253 and later (`Type=notify-reload`) tell this reload from an earlier one.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => say(&[NotifyState::Reloading, now]),
        Err(_) => say(&[NotifyState::Reloading]),
    }
}

/// The gateway closes its sessions, undoes its changes and ends.
pub fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// One line of words for `systemctl status`.
pub fn status(words: &str) {
    say(&[NotifyState::Status(words)]);
}

/// Everything answers; begins the time of `WatchdogSec=` anew.
pub fn alive() {
    say(&[NotifyState::Watchdog]);
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
