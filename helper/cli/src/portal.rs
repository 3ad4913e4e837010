//! `portal`: lets this network's sign-in page be reached for a while.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use culvert_protocol::{Event, Request};
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::failure::Failure;
use crate::{dial, output, show};

/// The page's name is looked up first.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

pub(crate) async fn portal(socket: &Path) -> Result<ExitCode, Failure> {
    let mut client = dial(socket).await?;
    let answer = timeout(OPEN_WITHIN, client.request(Request::OpenPortal)).await;
    match answer.map_err(|_| Failure::helper_silent())?? {
        Event::Portal { page, until } => {
            output::text(&page)?;
            let minutes = show::elapsed(OffsetDateTime::now_utc(), until);
            output::message(&format!(
                "Open this page in a browser and sign in; the VPN connects afterwards. For {minutes} it can be \
                 reached, and everything else stays held back."
            ));
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Failure::unexpected(&other)),
    }
}
