//! Devices without an enrolment on the wire: the registry gets them as it would from a gateway.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use culvert_server::addresses::Pool;
use culvert_server::config::Endpoint;
use culvert_server::registry::any::AnyRegistry;
use culvert_server::registry::{Enrolment, Invitation, Meta, Registry};
use culvert_server::state::StateDir;
use culvert_tunnel::identity::{Authority, Credential, DeviceId, DeviceKey};
use culvert_tunnel::invitation::{InvitationId, Secret};

use crate::credentials::{Credentials, DevicePem};

/// Devices of one user. The registry reads the names of all of a user's devices for each new one.
const DEVICES_A_USER: usize = 100;
/// How long an invitation is good; it is used up at once.
const LIFETIME: Duration = Duration::from_secs(3600);

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn prepare(state: &Path, devices: usize, output: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    let state = StateDir::new(state);
    let authority = state.authority()?; // tells when there is no gateway, before the lock makes a folder
    let _lock = state.lock()?;
    let registry = state.registry().await?;
    let made = enrol(&registry, &authority, devices).await;
    registry.close().await;
    made?.write(output)?;
    println!("{devices} devices in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

async fn enrol(registry: &AnyRegistry, authority: &Authority, devices: usize) -> anyhow::Result<Credentials> {
    let fact = async |meta: Meta| registry.meta(meta).await.map_err(anyhow::Error::from);
    let endpoint: Endpoint = fact(Meta::Endpoint).await?.context("the registry names no endpoint")?.parse()?;
    let ipv4 = fact(Meta::Ipv4).await?.context("the registry names no inner network")?.parse()?;
    let ipv6 = fact(Meta::Ipv6).await?.map(|text| text.parse()).transpose()?;
    let pool = Pool::new(ipv4, ipv6);
    let there = registry.devices().await?.len();
    let free = (pool.size() as usize).saturating_sub(there);
    if devices > free {
        bail!(
            "{ipv4} has room for {free} more devices and {devices} are wanted: init the gateway with a larger \
             network, such as [network] ipv4 = \"100.64.0.0/16\""
        );
    }
    let mut made = Vec::with_capacity(devices);
    for first in (0..devices).step_by(DEVICES_A_USER) {
        let count = DEVICES_A_USER.min(devices - first);
        let invitation = invitation(&format!("load-{}", (there + first) / DEVICES_A_USER), count as u32)?;
        registry.add_invitation(&invitation, "load").await?;
        for _ in 0..count {
            let name = format!("load-{}", there + made.len());
            made.push(device(registry, authority, pool, &invitation.id, &name).await?);
        }
    }
    Ok(Credentials { server_name: endpoint.host, devices: made })
}

fn invitation(user: &str, uses: u32) -> anyhow::Result<Invitation> {
    let now = SystemTime::now();
    Ok(Invitation {
        id: InvitationId::generate()?.as_bytes().to_vec(),
        key: Secret::generate()?.key().as_bytes().to_vec(),
        user: user.into(),
        uses_allowed: uses,
        uses: 0,
        created: now.into(),
        expires: (now + LIFETIME).into(),
        cancelled_at: None,
        last_use: None,
        renews: None,
    })
}

async fn device(
    registry: &AnyRegistry,
    authority: &Authority,
    pool: Pool,
    invitation: &[u8],
    name: &str,
) -> anyhow::Result<DevicePem> {
    let now = SystemTime::now();
    let key = DeviceKey::generate()?;
    let id = DeviceId::generate()?;
    let issued = authority.issue_device(&key.csr(name)?, id, now)?;
    let enrolment = Enrolment {
        invitation,
        device: &id.to_string(),
        name,
        spki_sha256: *issued.spki.as_bytes(),
        serial: &issued.serial_hex,
        not_after: issued.not_after.into(),
        authority: authority.pin(),
        pool,
        gateway: None,
        devices_per_user: None,
        now: now.into(),
    };
    registry.enrol(&enrolment).await?;
    let credential = Credential::new(vec![issued.der.into(), authority.certificate_der().clone()], key)?;
    Ok(DevicePem { chain: credential.chain_pem(), key: credential.key_pem().expose().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_prepared_is_what_the_registry_knows() {
        let folder = tempfile::tempdir().unwrap();
        let (state, output) = (folder.path().join("state"), folder.path().join("credentials.json"));
        gateway(&state, "100.64.0.0/28").await;
        tokio::task::spawn_blocking({
            let (state, output) = (state.clone(), output.clone());
            move || prepare(&state, 5, &output)
        })
        .await
        .unwrap()
        .unwrap();
        let credentials = Credentials::read(&output).unwrap();
        assert_eq!(credentials.server_name, "vpn.example.org");
        assert_eq!(credentials.transports(5).unwrap().len(), 5);
        assert!(credentials.transports(6).is_err());
        let registry = StateDir::new(&state).registry().await.unwrap();
        for device in &credentials.devices {
            let pin = Credential::from_pem(&device.chain, &device.key).unwrap().key().pin();
            assert!(registry.device_by_key(pin.as_bytes()).await.unwrap().is_some());
        }
        registry.close().await;
        let full = tokio::task::spawn_blocking(move || prepare(&state, 9, &output)).await.unwrap().unwrap_err();
        assert!(full.to_string().starts_with("100.64.0.0/28 has room for 8 more devices and 9 are wanted"), "{full}");
    }

    async fn gateway(state: &Path, network: &str) {
        let state = StateDir::new(state);
        let lock = state.lock().unwrap();
        let name = "vpn.example.org";
        let facts = [(Meta::Endpoint, name.to_owned()), (Meta::Ipv4, network.to_owned())];
        state.create(&lock, name, &[name.to_owned()], &facts).await.unwrap();
    }
}
