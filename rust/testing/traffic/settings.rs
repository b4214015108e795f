// SPDX-License-Identifier: Apache-2.0
//! Settings by name, as the command line gives them: one table for an end, one for a run.

use std::path::PathBuf;
use std::time::Duration;

use super::receiver::Check;
use crate::testing::driver::Layout;
use crate::testing::frames::{Checksum, Gso, GsoKind, Mac, Network, Transport};
use crate::testing::frontend::{Answer, FrontendConfig, Logging, MemoryMessage, Order, Side};
use crate::testing::memory::Backing;
use crate::testing::wire::features::{self, VIRTIO, protocol};
use crate::testing::{Error, Result};

/// Frame sizes of `sizes=mix`: around every border that a back-end may stumble over.
const MIX: [usize; 20] =
    [64, 65, 84, 127, 128, 129, 256, 511, 590, 1024, 1500, 1514, 1518, 2034, 2048, 2049, 4096, 5000, 8999, 9000];

/// Payload of a segment with timestamps on an Ethernet of 1500 bytes.
const GSO_SIZE: u16 = 1448;

/// What an end does besides taking what it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends numbered frames.
    Send,
    /// Sends none.
    Receive,
    /// Sends every frame back to where it came from.
    Echo,
}

/// Settings of one end.
#[derive(Clone, Debug)]
pub struct EndSettings {
    /// Session settings; memory regions are filled in when the end is made.
    pub frontend: FrontendConfig,
    /// What it does.
    pub role: Option<Role>,
    /// Its address.
    pub mac: Option<Mac>,
    /// Addresses from `mac` on that are its own, all of them announced.
    pub addresses: u32,
    /// The address it sends to; unset: the other end's.
    pub to: Option<Mac>,
    /// Addresses from `to` on that it sends to in turn: the other end's `addresses`.
    pub(super) destinations: u32,
    /// Queue pairs enabled at start; unset: all.
    pub enabled_pairs: Option<u16>,
    /// What memory is made of.
    pub backing: Backing,
    /// Bytes per region; unset: as much as rings and buffers take.
    pub memory_size: Option<usize>,
    /// Memory regions.
    pub regions: usize,
    /// How sent frames lie in descriptors.
    pub layout: Layout,
    /// How receive buffers lie in descriptors.
    pub rx_layout: Layout,
    /// Bytes of frame in a receive buffer; unset: 2048 mergeable, else room for 9018.
    pub buffer: Option<usize>,
    /// Bytes left between the pieces of a frame; unset: 0 for the light way, else 64.
    pub gap: Option<usize>,
    /// Frame sizes, taken in turn.
    pub sizes: Vec<usize>,
    /// How closely received frames are looked at; `Full` also means full building.
    pub check: Check,
    /// Network header.
    pub network: Network,
    /// Transport header.
    pub transport: Transport,
    /// Transport checksum; unset: good, or zero for the light way.
    pub checksum: Option<Checksum>,
    /// How frames ask to be cut.
    pub gso: Option<Gso>,
    /// VLAN id of sent frames.
    pub vlan: Option<u16>,
    /// Flows.
    pub flows: u16,
    /// Whether descriptors are written anew for each frame sent.
    pub rewrite: bool,
}

impl Default for EndSettings {
    fn default() -> Self {
        Self {
            frontend: FrontendConfig::new("", Side::Listen),
            role: None,
            mac: None,
            addresses: 1,
            to: None,
            destinations: 1,
            enabled_pairs: None,
            backing: Backing::Memfd,
            memory_size: None,
            regions: 1,
            layout: Layout::One,
            rx_layout: Layout::One,
            buffer: None,
            gap: None,
            sizes: vec![64],
            check: Check::Full,
            network: Network::V4,
            transport: Transport::Udp,
            checksum: None,
            gso: None,
            vlan: None,
            flows: 1,
            rewrite: true,
        }
    }
}

impl EndSettings {
    /// The names [`set`](Self::set) knows, with their values, for the help text.
    pub const NAMES: &[(&str, &str)] = &[
        ("socket", "path of the vhost-user socket"),
        ("side", "listen (for dpdkvhostuserclient ports) | connect (for dpdkvhostuser ports)"),
        ("role", "send | receive | echo; default: send for the first end, receive for the second"),
        ("mac", "own Ethernet address"),
        ("addresses", "Ethernet addresses from its own on, all announced and sent to in turn; default: 1"),
        ("to", "Ethernet address to send to; default: the other end's"),
        ("order", "qemu | virtio-user: order of messages, and base rule after a reconnect"),
        ("features", "virtio features asked for: name+name+… or 0x…"),
        ("with", "virtio features asked for besides"),
        ("without", "virtio features not asked for"),
        ("require", "virtio features without which the session is given up"),
        ("protocol", "vhost-user protocol features asked for: name+name+… or 0x…"),
        ("pairs", "queue pairs, 1 to 128"),
        ("enabled-pairs", "queue pairs enabled at start; default: all"),
        ("ring-size", "descriptors per ring, up to 32768; a power of two unless packed"),
        ("memory", "memfd | prealloc | huge2m | huge1g | private | a directory for an unlinked file"),
        ("memory-size", "MiB per region; default: what rings and buffers take"),
        ("regions", "memory regions, rings and buffers spread over them"),
        ("memory-message", "table (SET_MEM_TABLE) | regions (ADD_MEM_REG)"),
        ("mtu", "MTU told by NET_SET_MTU"),
        ("iommu", "KiB of a page of the IOMMU before the device, each page a mapping; default: there is none"),
        ("log", "no | yes | off-again: have the back-end keep a dirty log, as while a guest moves"),
        ("layout", "sent frames: one | two | chain:N | indirect:N"),
        ("rx-layout", "receive buffers: one | two | chain:N | indirect:N"),
        ("buffer", "bytes of frame in a receive buffer; default: 2048 mergeable, else 9018"),
        ("gap", "bytes left unused between the pieces of a frame"),
        ("sizes", "frame sizes without FCS, taken in turn: N+N+… | mix (64 to 9000)"),
        ("check", "full (every byte) | sequence (first cache line) | count"),
        ("network", "ipv4 | ipv6"),
        ("transport", "udp | tcp"),
        ("checksum", "good | partial | zero"),
        ("gso", "no | tso | tso-ecn | uso | ufo: ask that frames be cut; needs the transport to match"),
        ("gso-size", "bytes of payload in a piece, 17 to 65535; default 1448"),
        ("vlan", "VLAN id of sent frames; default: untagged"),
        ("flows", "flows, told apart by source port; the receiving end needs the same number"),
        ("rewrite", "yes | no: write the descriptor of every frame sent anew"),
        ("deadline", "longest wait for a reply of the back-end, seconds"),
    ];

    /// Sets `name` to `value`.
    ///
    /// # Errors
    /// `Config` for an unknown name (`Ok(false)` is not used for it) or a value that cannot be.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = || Error::Config(format!("{name} cannot be '{value}'"));
        let front = &mut self.frontend;
        match name {
            "socket" => front.socket = PathBuf::from(value),
            "side" => front.side = pick(name, value, &[("listen", Side::Listen), ("connect", Side::Connect)])?,
            "role" => {
                let roles = [("send", Role::Send), ("receive", Role::Receive), ("echo", Role::Echo)];
                self.role = Some(pick(name, value, &roles)?);
            }
            "mac" => self.mac = Some(value.parse()?),
            "addresses" => {
                self.addresses = value.parse().ok().filter(|count| (1..=1 << 24).contains(count)).ok_or_else(wrong)?;
            }
            "to" => self.to = Some(value.parse()?),
            "order" => {
                let orders = [("qemu", Order::Qemu), ("virtio-user", Order::VirtioUser)];
                front.order = pick(name, value, &orders)?;
            }
            "features" => front.features = features::parse(VIRTIO, value)?,
            "with" => front.features |= features::parse(VIRTIO, value)?,
            "without" => front.features &= !features::parse(VIRTIO, value)?,
            "require" => front.required = features::parse(VIRTIO, value)?,
            "protocol" => front.protocol = features::parse(protocol::PROTOCOL, value)?,
            "pairs" => front.pairs = value.parse().map_err(|_| wrong())?,
            "enabled-pairs" => self.enabled_pairs = Some(value.parse().map_err(|_| wrong())?),
            "ring-size" => front.ring_size = value.parse().map_err(|_| wrong())?,
            "memory" => self.backing = Backing::parse(value)?,
            "memory-size" => {
                let mib: usize = value.parse().map_err(|_| wrong())?;
                self.memory_size = Some(mib << 20);
            }
            "regions" => self.regions = value.parse().map_err(|_| wrong())?,
            "memory-message" => {
                let forms = [("table", MemoryMessage::Table), ("regions", MemoryMessage::Regions)];
                front.memory_message = pick(name, value, &forms)?;
            }
            "mtu" => front.mtu = Some(value.parse().map_err(|_| wrong())?),
            "iommu" => {
                let kib: u64 = value.parse().map_err(|_| wrong())?;
                if !kib.is_power_of_two() || !(4..=1 << 20).contains(&kib) {
                    return Err(wrong());
                }
                front.guard_by(kib << 10, Answer::Apart);
            }
            "log" => {
                let ways = [("no", Logging::Never), ("yes", Logging::On), ("off-again", Logging::OffAgain)];
                front.log = pick(name, value, &ways)?;
            }
            "layout" => self.layout = Layout::parse(value)?,
            "rx-layout" => self.rx_layout = Layout::parse(value)?,
            "buffer" => self.buffer = Some(value.parse().map_err(|_| wrong())?),
            "gap" => self.gap = Some(value.parse().map_err(|_| wrong())?),
            "sizes" if value == "mix" => self.sizes = MIX.to_vec(),
            "sizes" => {
                let sizes: std::result::Result<Vec<usize>, _> = value.split('+').map(str::parse).collect();
                self.sizes = sizes.map_err(|_| wrong())?;
            }
            "check" => self.check = Check::parse(value)?,
            "network" => self.network = pick(name, value, &[("ipv4", Network::V4), ("ipv6", Network::V6)])?,
            "transport" => self.transport = pick(name, value, &[("udp", Transport::Udp), ("tcp", Transport::Tcp)])?,
            "checksum" => {
                let kinds = [("good", Checksum::Good), ("partial", Checksum::Partial), ("zero", Checksum::Zero)];
                self.checksum = Some(pick(name, value, &kinds)?);
            }
            "gso" => self.gso = gso(name, value, self.gso.map_or(GSO_SIZE, |gso| gso.size))?,
            "gso-size" => {
                let size = value.parse().map_err(|_| wrong())?;
                self.gso = self.gso.map(|gso| Gso { size, ..gso });
                if self.gso.is_none() {
                    return Err(Error::Config("gso-size comes after gso=tso, uso or ufo".into()));
                }
            }
            "vlan" => self.vlan = Some(value.parse().ok().filter(|id| *id < 4095).ok_or_else(wrong)?),
            "flows" => self.flows = value.parse().map_err(|_| wrong())?,
            "rewrite" => self.rewrite = pick(name, value, &[("yes", true), ("no", false)])?,
            "deadline" => front.deadline = seconds(name, value)?,
            _ => return Err(Error::Config(format!("an end has no setting '{name}'"))),
        }
        Ok(())
    }
}

impl EndSettings {
    /// The features that frames to be cut like this need.
    pub(super) fn gso_features(&self) -> u64 {
        let Some(gso) = self.gso else { return 0 };
        let kind = match (gso.kind, self.network) {
            (GsoKind::Segments, Network::V4) => features::HOST_TSO4,
            (GsoKind::Segments, Network::V6) => features::HOST_TSO6,
            (GsoKind::Datagrams, _) => features::HOST_USO,
            (GsoKind::Fragments, _) => features::HOST_UFO,
        };
        kind | if gso.ecn { features::HOST_ECN } else { 0 }
    }
}

fn gso(name: &str, value: &str, size: u16) -> Result<Option<Gso>> {
    let of = |kind, ecn| Some(Gso { kind, size, ecn });
    let kinds = [
        ("no", None),
        ("tso", of(GsoKind::Segments, false)),
        ("tso-ecn", of(GsoKind::Segments, true)),
        ("uso", of(GsoKind::Datagrams, false)),
        ("ufo", of(GsoKind::Fragments, false)),
    ];
    pick(name, value, &kinds)
}

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Send and check; throughput.
    Traffic,
    /// One frame there and back at a time; round-trip times.
    Latency,
    /// As traffic, with the time frames of the first end are on their way to the second.
    Transit,
}

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct RunSettings {
    /// What for.
    pub mode: Mode,
    /// Length of the measurement; unset: until `stop` or `frames`.
    pub duration: Option<Duration>,
    /// Traffic before the measurement.
    pub warmup: Duration,
    /// Frames each sender sends at most.
    pub frames: Option<u64>,
    /// Processor to run on.
    pub cpu: Option<usize>,
    /// Frames per second each sending end may send; unset: as many as fit.
    pub rate: Option<u64>,
    /// Frames a sending end may have on the way; unset: as many as fit.
    pub in_flight: Option<u64>,
    /// Pause of a sender that found its ring full.
    pub backoff: Duration,
    /// Frames per queue and pass.
    pub burst: usize,
    /// Longest wait for all links to be up.
    pub link_timeout: Duration,
    /// Time for late frames after the last was sent.
    pub drain: Duration,
    /// Latency mode: time from one frame to the next; zero: at once.
    pub interval: Duration,
    /// Whether events are printed, one JSON object a line.
    pub events: bool,
    /// Whether commands are read from standard input.
    pub control: bool,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Traffic,
            duration: None,
            warmup: Duration::ZERO,
            frames: None,
            cpu: None,
            rate: None,
            in_flight: None,
            backoff: Duration::ZERO,
            burst: 64,
            link_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(1),
            interval: Duration::ZERO,
            events: false,
            control: false,
        }
    }
}

impl RunSettings {
    /// The names [`set`](Self::set) knows, with their values, for the help text.
    pub const NAMES: &[(&str, &str)] = &[
        ("mode", "traffic | latency (one frame there and back at a time) | transit (traffic, with the time it takes)"),
        ("duration", "length of the measurement, seconds; default: until frames are sent or stop"),
        ("warmup", "traffic before the measurement, seconds"),
        ("frames", "frames each sender sends at most"),
        ("cpu", "processor to run on"),
        ("rate", "frames per second of each sending end; default: as many as fit"),
        ("in-flight", "frames on the way per sending end; default: as many as fit"),
        ("backoff-us", "pause of a sender that found its ring full, microseconds"),
        ("burst", "frames per queue and pass"),
        ("link-timeout", "longest wait for the links, seconds"),
        ("drain", "time for late frames, seconds"),
        ("interval-us", "latency mode: time from one frame to the next, microseconds"),
        ("events", "yes | no: print link changes, one JSON object a line"),
        ("control", "yes | no: read commands from standard input"),
    ];

    /// Sets `name` to `value`.
    ///
    /// # Errors
    /// `Config` for an unknown name or a value that cannot be.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = || Error::Config(format!("{name} cannot be '{value}'"));
        let number = || value.parse::<u64>().map_err(|_| wrong());
        match name {
            "mode" => {
                let modes = [("traffic", Mode::Traffic), ("latency", Mode::Latency), ("transit", Mode::Transit)];
                self.mode = pick(name, value, &modes)?;
            }
            "duration" => self.duration = Some(seconds(name, value)?),
            "warmup" => self.warmup = seconds(name, value)?,
            "frames" => self.frames = Some(number()?),
            "cpu" => self.cpu = Some(value.parse().map_err(|_| wrong())?),
            "rate" => self.rate = Some(number()?),
            "in-flight" => self.in_flight = Some(number()?),
            "backoff-us" => self.backoff = Duration::from_micros(number()?),
            "burst" => self.burst = value.parse::<usize>().map_err(|_| wrong())?.clamp(1, 4096),
            "link-timeout" => self.link_timeout = seconds(name, value)?,
            "drain" => self.drain = seconds(name, value)?,
            "interval-us" => self.interval = Duration::from_micros(number()?),
            "events" => self.events = pick(name, value, &[("yes", true), ("no", false)])?,
            "control" => self.control = pick(name, value, &[("yes", true), ("no", false)])?,
            _ => return Err(Error::Config(format!("a run has no setting '{name}'"))),
        }
        Ok(())
    }
}

pub(crate) fn seconds(name: &str, value: &str) -> Result<Duration> {
    value
        .parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| Error::Config(format!("{name} cannot be '{value}' seconds")))
}

fn pick<T: Copy>(name: &str, value: &str, choices: &[(&str, T)]) -> Result<T> {
    choices.iter().find(|(word, _)| *word == value).map(|(_, choice)| *choice).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        Error::Config(format!("{name} '{value}' is not known: {}", words.join(", ")))
    })
}
