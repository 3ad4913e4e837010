//! An enrolled client that writes to its control stream as fast as the gateway lets it, and opens a new
//! session when it is thrown out. A stock quinn client: ours would hold itself back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_tunnel::control;
use culvert_tunnel::shard::mailbox::Protocol;
use quinn::crypto::rustls::QuicClientConfig;

use crate::Enrolled;
use crate::session::{Profile, hello};

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn flood(enrolled: &Enrolled) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs_f64(enrolled.seconds);
    let (mut sessions, mut frames) = (0u64, 0u64);
    let mut endings: BTreeMap<String, u64> = BTreeMap::new();
    while Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now());
        if let Ok(Err(error)) = tokio::time::timeout(left, once(enrolled, &mut sessions, &mut frames)).await {
            *endings.entry(format!("{error:#}")).or_default() += 1;
        }
    }
    println!("{frames} frames in {sessions} sessions");
    for (why, count) in endings {
        println!("{count} times: {why}");
    }
    Ok(())
}

/// One session, until the gateway ends it.
async fn once(enrolled: &Enrolled, sessions: &mut u64, frames: &mut u64) -> anyhow::Result<()> {
    let profile = Profile::read(&enrolled.profile)?;
    let credential = profile.credential()?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in credential.chain().iter().skip(1) {
        roots.add(certificate.clone())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(credential.chain().to_vec(), credential.private_key())?;
    tls.alpn_protocols = vec![Protocol::Session.alpn().to_vec()];
    let mut endpoint = quinn::Endpoint::client("0.0.0.0:0".parse()?)?;
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)));
    let connection = endpoint.connect(profile.remote()?, &profile.server_name)?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&control::encode(&hello())?).await?;
    // The welcome: from here on the frames belong to an open session.
    let mut answer = vec![0; 4096];
    receive.read(&mut answer).await?;
    *sessions += 1;
    // A hundred that want no answer, then one that does; answers are never read.
    let mut burst = Vec::new();
    for _ in 0..100 {
        burst.extend(control::encode(&control::FromClient::Path { mtu_bytes: 1400 })?);
    }
    burst.extend_from_slice(&[0, 0, 0, 16]);
    burst.extend_from_slice(br#"{"type":"dance"}"#);
    loop {
        send.write_all(&burst).await?;
        *frames += 101;
    }
}
