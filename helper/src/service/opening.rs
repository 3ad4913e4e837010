//! Lets a captive portal's sign-in page be reached for a while.

use std::net::SocketAddr;
use std::time::Instant;

use culvert_protocol::{Event, Problem, State, Timestamp, code};

use super::Service;
use crate::dial::RESOLVE_WITHIN;
use crate::guard::Opening;
use crate::names::Names;
use crate::portal;

/// What is open for a sign-in page, and until when by both clocks.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) what: Opening,
    pub(super) until: Instant,
    pub(super) until_utc: Timestamp,
}

impl Service {
    /// The way to the sign-in page is known: lets it be reached.
    pub(super) async fn on_opening(&mut self, what: Opening) -> Result<Event, Problem> {
        let State::PortalSignIn { page, .. } = self.supervisor.state() else {
            return Err(Problem::new(code::NO_PORTAL));
        };
        let for_how_long = self.options.portal_for;
        let until_utc = Timestamp::now_utc() + for_how_long;
        tracing::info!(page, ?what, "the sign-in page can be reached");
        self.open = Some(Open { what, until: Instant::now() + for_how_long, until_utc });
        // The routes of a tunnel that is down would swallow what is meant for the page.
        self.session.step_aside().await;
        self.hold().await?;
        self.publish();
        Ok(Event::Portal { page, until: until_utc })
    }

    /// The time for the sign-in is over.
    pub(super) async fn close(&mut self) {
        tracing::info!("the sign-in page is held back again");
        self.open = None;
        if let Err(problem) = self.hold().await {
            tracing::error!(%problem, "the kill switch");
        }
        self.publish();
    }
}

/// What a browser needs to see a page.
pub(super) async fn needed(page: &str, names: &Names) -> Opening {
    let name_servers = names.servers();
    let Some(endpoint) = portal::endpoint(page) else { return Opening { page: vec![], name_servers } };
    let found = tokio::time::timeout(RESOLVE_WITHIN, names.lookup(&endpoint)).await;
    let addresses = found.ok().and_then(Result::ok).unwrap_or_default();
    Opening { page: addresses.iter().map(SocketAddr::ip).collect(), name_servers }
}
