//! Enrolled clients whose inner packets are the harm: nothing is read, or every source is false.
//!
//! The engine is Culvert's own; only what drives it is not.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::BytesMut;
use culvert_lab::random::Random;
use culvert_tunnel::control::{self, FromClient, FromServer, Hello};
use culvert_tunnel::filter::Lease;
use culvert_tunnel::identity::Credential;
use culvert_tunnel::segment::VnetHeader;
use culvert_tunnel::shard::cid::CidKey;
use culvert_tunnel::shard::engine::{Engine, Role};
use culvert_tunnel::shard::mailbox::{Event, LinkId};
use culvert_tunnel::socket::{SocketOptions, bind};
use culvert_tunnel::transport::{ClientTransport, Tuning};
use serde::Deserialize;

use crate::raw::udp_packet;
use crate::{Enrolled, Pace};

/// A session must be open within this time.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// Where the packets with false sources pretend to go.
const SOMEWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 80), 9);

/// What a helper keeps of an enrolment, as far as it matters here.
#[derive(Debug, Deserialize)]
pub(crate) struct Profile {
    pub(crate) endpoints: Vec<String>,
    pub(crate) server_name: String,
    chain_pem: String,
    key_pem: String,
}

impl Profile {
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read(file).with_context(|| file.display().to_string())?;
        Ok(serde_json::from_slice(&text)?)
    }

    pub(crate) fn credential(&self) -> anyhow::Result<Credential> {
        Ok(Credential::from_pem(&self.chain_pem, &self.key_pem)?)
    }

    pub(crate) fn remote(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.endpoints.first().context("a profile without endpoints")?.parse()?)
    }
}

pub(crate) fn hello() -> FromClient {
    FromClient::Hello(Hello {
        version: control::VERSION,
        client: "hostile".into(),
        platform: "lab".into(),
        authorities: vec![],
    })
}

pub(crate) fn deaf(enrolled: &Enrolled) -> anyhow::Result<()> {
    let session = Session::open(&enrolled.profile)?;
    println!("{}", session.address);
    std::thread::sleep(Duration::from_secs_f64(enrolled.seconds));
    Ok(())
}

pub(crate) fn spoof(enrolled: &Enrolled) -> anyhow::Result<()> {
    let mut session = Session::open(&enrolled.profile)?;
    let end = Instant::now() + Duration::from_secs_f64(enrolled.seconds);
    let (mut random, mut pace) = (Random::new(0x1234_5678_9abc_def1), Pace::new(enrolled.rate));
    let mut packet = Vec::new();
    let mut sent = 0u64;
    while Instant::now() < end {
        for _ in 0..16 {
            pace.pass();
            let source = Ipv4Addr::from_bits(0x0a00_0000 | (random.next() as u32 & 0xff_ffff));
            udp_packet(SocketAddrV4::new(source, 9), SOMEWHERE, &[7; 1000], &mut packet);
            let now = Instant::now();
            // Our own filter asks the lease, so the lease lies.
            session.engine.admit(session.link, Lease { ipv4: source, ipv6: None });
            if session.engine.wants_device(now) {
                session.engine.on_frame(now, &VnetHeader::default(), &packet);
                sent += 1;
            }
        }
        session.turn()?;
        while let Some(event) = session.engine.poll_event() {
            if let Event::Closed { down, .. } = event {
                bail!("closed: {down} after {sent}");
            }
        }
    }
    println!("{sent}");
    Ok(())
}

/// A session and its socket, moved by hand.
struct Session {
    engine: Engine,
    socket: UdpSocket,
    link: LinkId,
    address: Ipv4Addr,
    buffer: Vec<u8>,
}

impl Session {
    fn open(profile: &Path) -> anyhow::Result<Self> {
        let profile = Profile::read(profile)?;
        let credential = profile.credential()?;
        let authority = credential.chain().last().context("an empty chain")?;
        let transport = ClientTransport::session(
            std::slice::from_ref(authority),
            credential.chain().to_vec(),
            credential.private_key(),
            Tuning::default(),
        )?;
        let remote = profile.remote()?;
        let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = bind(any.parse()?, SocketOptions::default())?;
        let mut engine = Engine::new(0, 1, Role::Client, CidKey::random(), false, None);
        let link = engine.dial(Instant::now(), remote, &profile.server_name, transport)?;
        let mut session = Self { engine, socket, link, address: Ipv4Addr::UNSPECIFIED, buffer: Vec::new() };
        let end = Instant::now() + OPEN_WITHIN;
        while Instant::now() < end {
            session.turn()?;
            while let Some(event) = session.engine.poll_event() {
                match event {
                    Event::Established(_) => {
                        session.engine.send_frame(Instant::now(), link, control::encode(&hello())?);
                    }
                    Event::Frame { payload, .. } => match control::decode(&payload)? {
                        FromServer::Welcome(welcome) => {
                            session.address = welcome.ipv4;
                            session.turn()?;
                            return Ok(session);
                        }
                        other => bail!("no welcome: {other:?}"),
                    },
                    Event::Closed { down, .. } => bail!("closed: {down}"),
                    _ => {}
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("no session within {OPEN_WITHIN:?}")
    }

    /// Everything that came in, and everything that is due out.
    fn turn(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut datagram = [0; 2048];
        self.engine.on_timeout(now);
        while let Ok((len, from)) = self.socket.recv_from(&mut datagram) {
            self.engine.on_datagram(now, from, None, None, BytesMut::from(&datagram[..len]));
        }
        self.engine.settle(now);
        self.engine.clear_frames();
        while let Some(transmit) = self.engine.poll_transmit(now, 1, &mut self.buffer) {
            // A datagram that finds no room is a lost one.
            _ = self.socket.send_to(&self.buffer[..transmit.size], transmit.destination);
        }
        self.engine.settle(now);
        Ok(())
    }
}
