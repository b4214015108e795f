// SPDX-License-Identifier: Apache-2.0
//! What a front-end is to be like.

use std::path::PathBuf;
use std::time::Duration;

use super::iommu::{Answer, IommuConfig, PAGE};
use crate::testing::memory::RegionSpec;
use crate::testing::wire::features::{self, protocol};
use crate::testing::{Error, Result};

/// Which side makes the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The front-end listens: for `dpdkvhostuserclient` ports.
    Listen,
    /// The front-end connects: for `dpdkvhostuser` ports.
    Connect,
}

/// Whose order of messages, and whose base rule after a reconnect, the session follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// QEMU's: rings enabled before features are set; base read back from the used ring.
    Qemu,
    /// DPDK virtio-user's: rings enabled last; base 0 on every connect.
    VirtioUser,
}

/// How memory is made known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMessage {
    /// All regions in one `SET_MEM_TABLE`.
    Table,
    /// One `ADD_MEM_REG` per region (needs `CONFIGURE_MEM_SLOTS`).
    Regions,
}

/// When the back-end is to keep a dirty log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logging {
    /// Not at all.
    Never,
    /// From the start of each session on.
    On,
    /// At the start of each session, and not any more once all rings run.
    OffAgain,
}

/// Settings of one front-end.
#[derive(Clone, Debug)]
pub struct FrontendConfig {
    /// The socket's path.
    pub socket: PathBuf,
    /// Which side makes it.
    pub side: Side,
    /// Message order and base rule.
    pub order: Order,
    /// virtio feature bits to acknowledge where they are offered.
    pub features: u64,
    /// virtio feature bits without which the session is given up.
    pub required: u64,
    /// vhost-user protocol feature bits to acknowledge where they are offered.
    pub protocol: u64,
    /// Queue pairs to set up, 1 to 128.
    pub pairs: u16,
    /// Descriptors per ring.
    pub ring_size: u16,
    /// Guest memory.
    pub regions: Vec<RegionSpec>,
    /// How memory is made known.
    pub memory_message: MemoryMessage,
    /// The MTU told by `NET_SET_MTU`, where both protocol and virtio MTU bits are agreed on.
    pub mtu: Option<u16>,
    /// The guest has an IOMMU before the device.
    pub iommu: Option<IommuConfig>,
    /// Whether the back-end marks what it writes in a dirty log.
    pub log: Logging,
    /// Close the socket instead of sending the message with this number, counted from 0.
    pub hang_up_at: Option<u32>,
    /// The longest wait for any one reply.
    pub deadline: Duration,
}

impl FrontendConfig {
    /// One queue pair of 256 descriptors, 64 MiB of memfd, modern and mergeable, QEMU's order.
    pub fn new(socket: impl Into<PathBuf>, side: Side) -> Self {
        use crate::testing::memory::Backing;
        Self {
            socket: socket.into(),
            side,
            order: Order::Qemu,
            features: Self::default_features(),
            required: 0,
            protocol: Self::default_protocol(),
            pairs: 1,
            ring_size: 256,
            regions: RegionSpec::spread(1, 64 << 20, &Backing::Memfd),
            memory_message: MemoryMessage::Table,
            mtu: None,
            iommu: None,
            log: Logging::Never,
            hang_up_at: None,
            deadline: Duration::from_secs(5),
        }
    }

    /// Feature bits asked for unless told otherwise: what a Linux guest without offloads takes.
    pub fn default_features() -> u64 {
        features::VERSION_1
            | features::MRG_RXBUF
            | features::PROTOCOL_FEATURES
            | features::STATUS
            | features::CTRL_VQ
            | features::INDIRECT_DESC
            | features::EVENT_IDX
            | features::GUEST_ANNOUNCE
    }

    /// Protocol bits asked for unless told otherwise: those of QEMU 7.2 that the front-end serves.
    pub fn default_protocol() -> u64 {
        protocol::MQ
            | protocol::REPLY_ACK
            | protocol::MTU
            | protocol::RARP
            | protocol::STATUS
            | protocol::CONFIGURE_MEM_SLOTS
            | protocol::RESET_DEVICE
    }

    /// Gives the guest an IOMMU before the device, with pages of the smallest size, which answers so.
    pub fn guard(&mut self, answer: Answer) {
        self.guard_by(PAGE, answer);
    }

    /// The same with pages of so many bytes, a power of two from 4096 on.
    pub fn guard_by(&mut self, page: u64, answer: Answer) {
        self.iommu = Some(IommuConfig { offset: 1 << 40, page, answer });
        self.features |= features::IOMMU_PLATFORM;
        self.required |= features::IOMMU_PLATFORM;
        self.protocol |= protocol::BACKEND_REQ;
    }

    pub(super) fn check(&self) -> Result<()> {
        if !(1..=128).contains(&self.pairs) {
            return Err(Error::Config(format!("{} queue pairs: 1 to 128 can be", self.pairs)));
        }
        Ok(())
    }
}
