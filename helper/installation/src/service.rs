//! Apple's calls for the two jobs: SMAppService (ServiceManagement, macOS 13). For the app only: what is registered is
//! the job in the bundle of the program that runs.

use std::path::Path;

use smappservice_rs::{AppService, ServiceManagementError, ServiceStatus, ServiceType};

use crate::paths;
use crate::reconcile::Job;

/// The bundle's job.
pub fn bundle() -> Job {
    job(daemon().status())
}

/// The package's job, as far as its plist says: macOS asks nobody to approve a job in `/Library`. One that a user has
/// switched off answers on no socket.
pub fn package() -> Job {
    if Path::new(paths::DAEMON_PLIST).exists() { Job::Enabled } else { Job::Absent }
}

/// Registers the bundle's job. A call that fails may have changed something all the same (macos.md 6.3): the status
/// afterwards counts, so that is what comes back.
///
/// # Errors
/// What macOS says, where the job is still not registered.
pub fn register() -> Result<Job, ServiceManagementError> {
    let result = daemon().register();
    match (bundle(), result) {
        (Job::Absent, Err(error)) => Err(error),
        (job, _) => Ok(job),
    }
}

/// Unregisters the bundle's job. Registering it again at once fails: do that on a later turn of the main queue.
///
/// # Errors
/// What macOS says, where the job is still registered.
pub fn unregister() -> Result<Job, ServiceManagementError> {
    let result = daemon().unregister();
    match (bundle(), result) {
        (Job::Absent, _) => Ok(Job::Absent),
        (_, Err(error)) => Err(error),
        (job, Ok(())) => Ok(job),
    }
}

/// Opens the page of System Settings where jobs are approved; only when somebody asks for it.
pub fn open_settings() {
    AppService::open_system_settings_login_items();
}

fn daemon() -> AppService {
    AppService::new(ServiceType::Daemon { plist_name: paths::BUNDLE_PLIST })
}

fn job(status: ServiceStatus) -> Job {
    match status {
        ServiceStatus::NotRegistered | ServiceStatus::NotFound => Job::Absent,
        ServiceStatus::RequiresApproval => Job::AwaitsApproval,
        ServiceStatus::Enabled => Job::Enabled,
    }
}
