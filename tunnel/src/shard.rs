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
pub mod handover;
mod handshakes;
mod hold_up;
mod inner_mtu;
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

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use crate::close::Close;
use crate::device::Device;
use crate::segment::Intake;
use crate::shard::cid::CidKey;
use crate::shard::engine::{Engine, Role};
use crate::shard::handover::Ring;
use crate::shard::mailbox::{COMMANDS, Command, EVENTS, Event, ShardHandle};
use crate::shard::udp::Udp;
use crate::shard::waker::Wakeup;

/// `recvmmsg` calls a turn, so that one busy peer cannot starve the device.
const RECEIVES_A_TURN: usize = 8;
/// Device frames a turn: super-packets of up to 64 KiB, or many small ones.
const FRAMES_A_TURN: usize = 128;
/// Bytes of the device a turn.
const DEVICE_BYTES_A_TURN: u64 = 512 * 1024;
/// Bytes read from the device after which the network gets them: one GSO batch.
const BATCH_BYTES: u64 = 60_000;
/// How long a shard looks again after a turn that carried a few inner packets, before it sleeps: their
/// answers are often close behind, and waking a sleeping core costs more than this. Not for QUIC's own
/// packets: with 10,000 idle sessions it would be 5 % of a core.
const LINGER: Duration = Duration::from_micros(50);
/// More packets than these in a turn are a stream: what comes next is long on its way, and others may
/// need the core.
const FEW: u64 = 8;
/// For so long after it a stream may go on.
const STREAM: Duration = Duration::from_millis(2);
/// How soon a full event channel is tried again.
const UNTOLD_RETRY: Duration = Duration::from_millis(10);
/// A `poll` that only looks.
const NOT_AT_ALL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Commands a turn.
const COMMANDS_A_TURN: usize = 256;
/// Packets and datagrams taken over from other shards a turn.
const HANDOVERS_A_TURN: usize = 1024;

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
    let rings: Vec<Ring> = handles.iter().map(|handle| Ring::new(handle.waker.clone())).collect();
    let mut running = Vec::new();
    for (index, (config, (mailbox, wakeup))) in configs.into_iter().zip(ends).enumerate() {
        let shard = index as u8;
        let (told, events) = mpsc::channel(EVENTS);
        let udp = Udp::new(config.socket)?;
        let mut engine = Engine::new(shard, count, config.role, config.cids, !udp.state.may_fragment(), None);
        if let Some(device) = &config.device {
            engine.on_attached(device.offload());
        }
        let rings = rings.clone();
        let shard = Shard {
            engine,
            udp,
            device: config.device,
            intake: Intake::default(),
            moved: 0,
            carried: 0,
            streamed: None,
            device_mtu: None,
            mailbox,
            wakeup,
            told,
            shard,
            rings,
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
    /// Datagrams moved up to the last sleep.
    moved: u64,
    /// Inner packets carried up to the last sleep.
    carried: u64,
    /// When a turn last moved many.
    streamed: Option<Instant>,
    /// The MTU last set on a client's device.
    device_mtu: Option<u16>,
    mailbox: mpsc::Receiver<Command<D>>,
    wakeup: Wakeup,
    told: mpsc::Sender<Event>,
    /// This shard's number.
    shard: u8,
    /// Of every shard, by number.
    rings: Vec<Ring>,
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
            more |= self.take_over(now);
            if ready.udp {
                more |= self.read_udp(now);
            }
            let wrote = self.write_device();
            // What was written is often answered at once: by the host itself, or by an acknowledgement.
            if (ready.device || wrote) && !self.udp.is_blocked() {
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
            Command::Limit { link, rules } => self.engine.limit(link, rules),
            Command::Close { link, code, reason } => self.engine.close(now, link, code, reason),
            Command::Echo { link } => self.engine.echo(now, link),
            Command::Serve(transport) => self.engine.serve(transport),
            Command::Judge(policy) => self.engine.judge(policy),
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
            Command::Heartbeat(reply) => _ = reply.send(()), // who asked may have given up
            Command::Stop { .. } => {}                       // taken by `drain_mailbox`
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
            self.write_frames(true);
            if !more {
                break;
            }
        }
        more
    }

    /// Writes what is there. Returns true when that was something.
    fn write_device(&mut self) -> bool {
        let wrote = self.write_frames(false);
        self.engine.clear_frames();
        wrote
    }

    /// Writes the frames in front, or only those that grow no more: the host works on them while the
    /// next batch is decrypted.
    fn write_frames(&mut self, full: bool) -> bool {
        let frames = if full { self.engine.full_frames() } else { self.engine.frames() };
        let count = frames.len();
        if count == 0 {
            return false;
        }
        if let Some(device) = self.device.as_mut() {
            match device.write_batch(frames) {
                // A full TUN queue means the host's stack is behind: what does not fit is lost, as
                // on any link; the inner flows adapt.
                Ok(taken) => {
                    for _ in taken..count {
                        self.engine.stats_mut().undelivered.count(&crate::packet::Dropped::QueueFull);
                    }
                }
                Err(error) => self.lose_device(&error),
            }
        }
        self.engine.take_frames(count);
        true
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

    fn ring(&self) -> &Ring {
        &self.rings[usize::from(self.shard)]
    }

    /// Takes what other shards have handed over. Returns true when more is left.
    fn take_over(&mut self, now: Instant) -> bool {
        if self.rings.len() == 1 {
            return false;
        }
        for _ in 0..HANDOVERS_A_TURN {
            let Some(handover) = self.ring().take() else {
                self.engine.settle(now);
                return false;
            };
            self.engine.on_handover(now, handover);
        }
        self.engine.settle(now);
        true
    }

    fn hand_over(&mut self) {
        if self.rings.len() == 1 {
            return;
        }
        let (mut given, mut lost) = (0, 0);
        let mut wake = [false; 256];
        for handover in self.engine.handovers() {
            let shard = usize::from(handover.shard());
            if self.rings.get(shard).is_some_and(|ring| ring.give(handover)) {
                given += 1;
                wake[shard] = true;
            } else {
                lost += 1;
            }
        }
        for (ring, _) in self.rings.iter().zip(wake).filter(|(_, wake)| *wake) {
            ring.wake();
        }
        let stats = self.engine.stats_mut();
        stats.handed_out += given;
        stats.handed_lost += lost;
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
        // From here on the other shards wake this one.
        let wait = if self.ring().fall_asleep() { wait } else { Some(Duration::ZERO) };
        let udp_flags = if self.udp.is_blocked() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let device = self.device.as_ref().filter(|_| wants_device).and_then(Device::poll_fd);
        let mut fds = [
            PollFd::new(&self.wakeup, PollFlags::IN),
            PollFd::new(&self.udp.socket, udp_flags),
            // Without a device its place is not polled.
            device.as_ref().map_or(PollFd::new(&self.wakeup, PollFlags::empty()), |fd| PollFd::new(fd, PollFlags::IN)),
        ];
        let polled = if device.is_some() { 3 } else { 2 };
        // Look again for a little while, but not in the middle of a stream.
        let moved = self.engine.moved() - self.moved;
        self.moved += moved;
        let carried = self.engine.carried() - self.carried;
        self.carried += carried;
        if moved > FEW {
            self.streamed = Some(now);
        }
        let rests = self.streamed.is_none_or(|streamed| now > streamed + STREAM);
        let linger = now + wait.map_or(LINGER, |wait| wait.min(LINGER));
        while rests && carried > 0 && Instant::now() < linger {
            if matches!(poll(&mut fds[..polled], Some(&NOT_AT_ALL)), Ok(1..)) {
                break;
            }
            std::thread::yield_now();
        }
        let wait = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) });
        let polled = poll(&mut fds[..polled], wait.as_ref());
        self.ring().awake();
        match polled {
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
