//! Is the gateway ready for clients? Looked at when somebody asks: compose, systemd, a load balancer.

use std::path::Path;

use crate::config::Config;
use crate::nat;
use crate::registry::Registry;

/// What is not as it has to be: `registry`, `tun`, `nat`. That the sockets listen and the loop answers shows by
/// the answer.
pub async fn failed<R: Registry>(registry: &R, config: &Config) -> Vec<String> {
    let mut failed = Vec::new();
    if registry.last_event().await.is_err() {
        failed.push("registry".to_owned());
    }
    let device = config.device.clone();
    let host = tokio::task::spawn_blocking(move || {
        let up = Path::new("/sys/class/net").join(&device).exists();
        (up, nat::is_there(&nat::table_name(&device)).unwrap_or(false))
    });
    let (tun, nat) = host.await.unwrap_or((false, false)); // the runtime is going down
    failed.extend((!tun).then(|| "tun".to_owned()));
    failed.extend((!nat).then(|| "nat".to_owned()));
    failed
}
