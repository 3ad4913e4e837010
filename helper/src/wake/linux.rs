//! Linux: `PrepareForSleep` of systemd-logind (org.freedesktop.login1(5)), which is false once the machine is awake.

use std::time::Duration;

use futures_util::StreamExt;
use zbus::{Connection, MatchRule, MessageStream, message};

/// A bus may be slow at boot.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

pub(super) struct Wakes(MessageStream);

impl std::fmt::Debug for Wakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wakes")
    }
}

impl Wakes {
    pub(super) async fn open() -> Option<Self> {
        let opened = tokio::time::timeout(ANSWER_WITHIN, listen()).await;
        match opened {
            Ok(Ok(stream)) => Some(Self(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "systemd-logind does not tell of sleep");
                None
            }
            Err(_) => None,
        }
    }

    pub(super) async fn next(&mut self) {
        while let Some(message) = self.0.next().await {
            if message.is_ok_and(|message| message.body().deserialize::<bool>().is_ok_and(|begins| !begins)) {
                return;
            }
        }
        std::future::pending::<()>().await; // the bus is gone
    }
}

async fn listen() -> zbus::Result<MessageStream> {
    let bus = Connection::system().await?;
    let rule = MatchRule::builder()
        .msg_type(message::Type::Signal)
        // Anybody may send a signal of that name.
        .sender("org.freedesktop.login1")
        .interface("org.freedesktop.login1.Manager")
        .member("PrepareForSleep")
        .build()?;
    MessageStream::for_match_rule(rule, &bus, None).await
}
