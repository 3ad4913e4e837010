//! One shard: an OS thread with one loop that owns its UDP socket, its device queue and all of its
//! connections. Nothing in it is locked. One turn (architecture section 3):
//!
//! 1. fire due timers; 2. drain the mailbox; 3. read the UDP socket (GRO, pooled buffers);
//! 4. write the device (coalesced); 5. read the device (super-packets are split);
//! 6. transmit with as many GSO segments as the kernel takes; 7. sleep in one `poll`.
//!
//! What each step decides is in [`engine`]; this file only moves bytes.

pub mod cid;
mod ending;
pub mod engine;
mod handshakes;
mod hold_up;
mod link;
pub mod mailbox;
mod payload;
mod timers;
mod udp;
pub mod waker;

use std::io::{self};
use std::net::UdpSocket;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quinn_proto::EcnCodepoint;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use crate::close::Close;
use crate::device::Device;
use crate::segment::Intake;
use crate::shard::cid::CidKey;
use crate::shard::engine::{Engine, Handover, Role};
use crate::shard::mailbox::{COMMANDS, Command, EVENTS, Event, ShardHandle};
use crate::shard::udp::Udp;
use crate::shard::waker::Wakeup;

/// `recvmmsg` calls a turn, so that one busy peer cannot starve the device.
const RECEIVES_A_TURN: usize = 4;
/// Device frames a turn: super-packets of up to 64 KiB, or many small ones.
const FRAMES_A_TURN: usize = 128;
/// Bytes of the device a turn.
const DEVICE_BYTES_A_TURN: u64 = 512 * 1024;
/// Bytes read from the device after which the network gets them: one GSO batch.
const BATCH_BYTES: u64 = 60_000;
/// How soon a full event channel is tried again.
const UNTOLD_RETRY: Duration = Duration::from_millis(10);
/// Commands a turn.
const COMMANDS_A_TURN: usize = 256;

/// What a group of shards is made of.
#[derive(Debug)]
pub struct ShardConfig<D: Device> {
    /// Bound and ready; see [`crate::socket::bind`].
    pub socket: UdpSocket,
    /// The device queue; a client attaches its own later.
    pub device: Option<D>,
    /// Which end this is.
    pub role: Role,
    /// The group's secret for connection IDs.
    pub cids: CidKey,
}

/// A started shard.
#[derive(Debug)]
pub struct RunningShard<D: Device> {
    /// For commands.
    pub handle: ShardHandle<D>,
    /// What it tells; must be read, or its control streams wait.
    pub events: mpsc::Receiver<Event>,
    /// Ends after [`Command::Stop`].
    pub thread: JoinHandle<()>,
}

/// Starts one thread a config. All of them serve one gateway (or one is a client's).
///
/// # Errors
/// When the OS gives no thread, no descriptor, or refuses a socket option.
pub fn spawn<D: Device>(configs: Vec<ShardConfig<D>>) -> io::Result<Vec<RunningShard<D>>> {
    let count = u8::try_from(configs.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut handles = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..count {
        let (waker, wakeup) = waker::pair()?;
        let (commands, mailbox) = mpsc::channel(COMMANDS);
        handles.push(ShardHandle { commands, waker });
        ends.push((mailbox, wakeup));
    }
    let mut running = Vec::new();
    for (index, (config, (mailbox, wakeup))) in configs.into_iter().zip(ends).enumerate() {
        let shard = index as u8;
        let (told, events) = mpsc::channel(EVENTS);
        let udp = Udp::new(config.socket)?;
        let mut engine = Engine::new(shard, count, config.role, config.cids, !udp.state.may_fragment(), None);
        if let Some(device) = &config.device {
            engine.on_attached(device.offload());
        }
        let peers = handles.clone();
        let shard = Shard {
            engine,
            udp,
            device: config.device,
            intake: Intake::default(),
            device_mtu: None,
            mailbox,
            wakeup,
            told,
            peers,
        };
        let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || shard.run())?;
        running.push(RunningShard { handle: handles[index].clone(), events, thread });
    }
    Ok(running)
}

#[derive(Debug)]
struct Shard<D: Device> {
    engine: Engine,
    udp: Udp,
    device: Option<D>,
    /// Where the device's frames are read into.
    intake: Intake,
    /// The MTU last set on a client's device.
    device_mtu: Option<u16>,
    mailbox: mpsc::Receiver<Command<D>>,
    wakeup: Wakeup,
    told: mpsc::Sender<Event>,
    peers: Vec<ShardHandle<D>>,
}

/// What is left in the mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// Nothing.
    All,
    /// Commands for the next turn.
    Some,
    /// The shard is to end.
    Stop,
}

/// What `poll` said is ready.
#[derive(Clone, Copy, Debug)]
struct Ready {
    mailbox: bool,
    udp: bool,
    device: bool,
}

impl<D: Device> Shard<D> {
    fn run(mut self) {
        let mut ready = Ready { mailbox: true, udp: true, device: true };
        let mut left_in_mailbox = false;
        loop {
            self.engine.stats_mut().turns += 1;
            let now = Instant::now();
            self.engine.on_timeout(now);
            let mut more = self.engine.has_more();
            if ready.mailbox || left_in_mailbox {
                match self.drain_mailbox(now) {
                    Drained::All => left_in_mailbox = false,
                    Drained::Some => left_in_mailbox = true,
                    Drained::Stop => return self.finish(),
                }
                more |= left_in_mailbox;
            }
            if ready.udp {
                more |= self.read_udp(now);
            }
            self.write_device();
            if ready.device && !self.udp.is_blocked() {
                more |= self.read_device(now);
                self.write_device(); // ICMP answers
            }
            self.hand_over();
            self.transmit(Instant::now());
            more |= self.tell() | self.engine.has_more();
            self.follow_mtu();
            ready = self.sleep(more, ready);
        }
    }

    fn drain_mailbox(&mut self, now: Instant) -> Drained {
        self.wakeup.drain();
        let mut drained = Drained::Some;
        for _ in 0..COMMANDS_A_TURN {
            match self.mailbox.try_recv() {
                Ok(Command::Stop { code, reason }) => {
                    self.engine.stop(now, code, &reason);
                    self.engine.settle(now);
                    return Drained::Stop;
                }
                Ok(command) => self.on_command(now, command),
                Err(mpsc::error::TryRecvError::Empty) => {
                    drained = Drained::All;
                    break;
                }
                Err(mpsc::error::TryRecvError::Disconnected) => return Drained::Stop,
            }
        }
        self.engine.settle(now);
        drained
    }

    /// Sends the last closes and tells the last events, as long as a slow socket or control plane
    /// may take.
    fn finish(mut self) {
        const LAST_WORDS: Duration = Duration::from_millis(100);
        let end = Instant::now() + LAST_WORDS;
        loop {
            self.transmit(Instant::now());
            self.tell();
            if !(self.udp.is_blocked() || self.engine.has_untold()) || Instant::now() >= end || self.told.is_closed() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn on_command(&mut self, now: Instant, command: Command<D>) {
        match command {
            Command::Dial { remote, server_name, transport, reply } => {
                let dialled = self.engine.dial(now, remote, &server_name, *transport);
                // Nobody would ever close a link that nobody knows of.
                if let Err(Ok(link)) = reply.send(dialled) {
                    self.engine.close(now, link, Close::Goodbye, String::new());
                }
            }
            Command::Send { link, frame } => self.engine.send_frame(now, link, frame),
            Command::Admit { link, lease } => self.engine.admit(link, lease),
            Command::Close { link, code, reason } => self.engine.close(now, link, code, reason),
            Command::Echo { link } => self.engine.echo(now, link),
            Command::Attach(device) => {
                self.engine.on_attached(device.offload());
                self.device = Some(device);
                self.device_mtu = None;
            }
            Command::Detach => self.device = None,
            Command::Rebind(socket) => {
                if let Ok(udp) = Udp::new(socket) {
                    self.udp = udp;
                    self.engine.on_rebind();
                }
            }
            Command::Inspect(reply) => self.engine.inspect(reply),
            Command::Deliver { link, packet } => self.engine.on_handed_packet(link, packet),
            Command::Datagram { remote, ecn, payload } => {
                self.engine.on_datagram(now, remote, None, EcnCodepoint::from_bits(ecn), payload);
            }
            Command::Stop { .. } => {} // taken by `drain_mailbox`
        }
    }

    /// Returns true when the socket may hold more.
    fn read_udp(&mut self, now: Instant) -> bool {
        let mut more = false;
        for _ in 0..RECEIVES_A_TURN {
            let engine = &mut self.engine;
            more = self.udp.receive(&mut |remote, local_ip, ecn, payload| {
                engine.on_datagram(now, remote, local_ip, ecn, payload);
            });
            self.engine.settle(now);
            if !more {
                break;
            }
        }
        more
    }

    fn write_device(&mut self) {
        let frames = self.engine.frames();
        if frames.is_empty() {
            return;
        }
        if let Some(device) = self.device.as_mut() {
            let taken = device.write_batch(frames);
            match taken {
                // A full TUN queue means the host's stack is behind: what does not fit is lost, as
                // on any link; the inner flows adapt.
                Ok(taken) => {
                    let lost = frames.len() - taken;
                    for _ in 0..lost {
                        self.engine.stats_mut().dropped_device.count(&crate::packet::Dropped::QueueFull);
                    }
                }
                Err(error) => self.lose_device(&error),
            }
        }
        self.engine.clear_frames();
    }

    /// Returns true when the device may hold more. What fills a batch is sent at once: the far end
    /// works on it meanwhile, and its memory is still in the cache.
    fn read_device(&mut self, now: Instant) -> bool {
        let (mut bytes, mut unsent) = (0, 0);
        for _ in 0..FRAMES_A_TURN {
            if !self.engine.wants_device(now) {
                return false;
            }
            let Some(device) = self.device.as_mut() else { return false };
            let engine = &mut self.engine;
            let read = device.read_batch(1, &mut self.intake, &mut |frame| {
                unsent += frame.len() as u64;
                engine.on_device_frame(now, frame);
            });
            match read {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => {
                    self.lose_device(&error);
                    return false;
                }
            }
            if unsent >= BATCH_BYTES {
                bytes += unsent;
                unsent = 0;
                self.transmit(now);
                if bytes >= DEVICE_BYTES_A_TURN || self.udp.is_blocked() {
                    break;
                }
            }
        }
        true
    }

    fn lose_device(&mut self, error: &io::Error) {
        self.device = None;
        self.engine.on_device_gone(error.raw_os_error().unwrap_or(0));
    }

    fn hand_over(&mut self) {
        for handover in self.engine.take_handovers() {
            let (shard, command) = match handover {
                Handover::Packet { link, packet } => (link.shard, Command::Deliver { link, packet }),
                Handover::Datagram { shard, remote, ecn, payload } => {
                    (shard, Command::Datagram { remote, ecn: ecn.map_or(0, |ecn| ecn as u8), payload })
                }
            };
            let taken = self.peers.get(usize::from(shard)).is_some_and(|peer| {
                let taken = peer.commands.try_send(command).is_ok();
                peer.waker.wake();
                taken
            });
            if !taken {
                self.engine.stats_mut().dropped_device.count(&crate::packet::Dropped::QueueFull);
            }
        }
    }

    fn transmit(&mut self, now: Instant) {
        if !self.udp.retry() {
            return;
        }
        let segments = self.udp.state.max_gso_segments();
        while let Some(transmit) = self.engine.poll_transmit(now, segments, &mut self.udp.outgoing) {
            if !self.udp.send(transmit) {
                break;
            }
        }
        self.engine.settle(now);
    }

    /// Returns true when control streams were read that had waited: there may be more to tell.
    fn tell(&mut self) -> bool {
        let mut told = false;
        while let Some(event) = self.engine.poll_event() {
            match self.told.try_send(event) {
                Ok(()) => told = true,
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.engine.unpoll_event(event);
                    break;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {}
            }
        }
        let resume = told && self.engine.is_starved();
        if resume {
            self.engine.resume_control(Instant::now());
        }
        resume
    }

    /// A client's device follows the path of its session.
    fn follow_mtu(&mut self) {
        let Some(mtu_bytes) = self.engine.active_mtu().filter(|&mtu| mtu > 0) else { return };
        if self.device_mtu != Some(mtu_bytes)
            && let Some(device) = self.device.as_mut()
        {
            self.device_mtu = Some(mtu_bytes);
            if let Err(error) = device.set_mtu(mtu_bytes) {
                self.lose_device(&error);
            }
        }
    }

    /// Step 7. `more` says that something was left undone and the poll must not wait.
    fn sleep(&mut self, more: bool, last: Ready) -> Ready {
        let now = Instant::now();
        let wants_device = self.engine.wants_device(now) && !self.udp.is_blocked();
        let wait = if more {
            Some(Duration::ZERO)
        } else {
            // Nothing says when a full event channel has room again.
            let untold = (self.engine.has_untold() || self.engine.is_starved()).then_some(UNTOLD_RETRY);
            let due = self.engine.poll_timeout().map(|due| due.saturating_duration_since(now));
            [due, untold].into_iter().flatten().min()
        };
        let wait = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) });
        let udp_flags = if self.udp.is_blocked() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let device = self.device.as_ref().filter(|_| wants_device).and_then(Device::poll_fd);
        let mut fds = [
            PollFd::new(&self.wakeup, PollFlags::IN),
            PollFd::new(&self.udp.socket, udp_flags),
            // Without a device its place is not polled.
            device.as_ref().map_or(PollFd::new(&self.wakeup, PollFlags::empty()), |fd| PollFd::new(fd, PollFlags::IN)),
        ];
        let polled = if device.is_some() { 3 } else { 2 };
        match poll(&mut fds[..polled], wait.as_ref()) {
            Ok(_) => Ready {
                mailbox: !fds[0].revents().is_empty(),
                udp: !fds[1].revents().is_empty(),
                device: device.is_some() && !fds[2].revents().is_empty(),
            },
            // EINTR and the like: look everywhere.
            Err(_) => Ready { mailbox: true, udp: true, device: wants_device && last.device },
        }
    }
}
