//! A device's queues, whichever way they are reached.

use super::afxdp::Gauges;
use super::{afxdp, packet};
use crate::error::{Error, Result};
use crate::sys::packet::Promiscuous;

/// The way to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Driver {
    /// AF_XDP: the fast one.
    #[default]
    Afxdp,
    /// AF_PACKET: any device, one queue.
    Packet,
}

/// What is to be taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Over AF_XDP.
    Afxdp(afxdp::Plan),
    /// Over AF_PACKET.
    Packet(packet::Plan),
}

impl Plan {
    /// The device's name, for people.
    pub fn netdev(&self) -> &str {
        match self {
            Self::Afxdp(plan) => &plan.netdev,
            Self::Packet(plan) => &plan.netdev,
        }
    }
}

/// The rx side of a queue. Belongs to one thread.
#[derive(Debug)]
pub enum RxQueue {
    /// Over AF_XDP.
    Afxdp(afxdp::RxQueue),
    /// Over AF_PACKET.
    Packet(packet::RxQueue),
}

/// The tx side of a queue. Belongs to one thread at a time.
#[derive(Debug)]
pub enum TxQueue {
    /// Over AF_XDP.
    Afxdp(afxdp::TxQueue),
    /// Over AF_PACKET.
    Packet(packet::TxQueue),
}

/// The hold on a device: until it is dropped, frames of its queues come here.
#[derive(Debug)]
pub enum Attachment {
    /// Over AF_XDP, whose sockets leave to us what the device lets in.
    Afxdp(afxdp::Attachment, Promiscuous),
    /// Over AF_PACKET.
    Packet(packet::Attachment),
}

impl Attachment {
    /// Takes the device's queues over; both sides of each.
    ///
    /// # Errors
    /// `Kernel`, naming the device, what was refused, and the cure.
    pub fn open(plan: &Plan) -> Result<(Self, Vec<(RxQueue, TxQueue)>)> {
        match plan {
            Plan::Afxdp(plan) => {
                let promiscuous = Promiscuous::hold(plan.ifindex).map_err(|e| {
                    Error::kernel(
                        format!("{}: cannot be made promiscuous: give this process CAP_NET_RAW", plan.netdev),
                        e,
                    )
                })?;
                let (attachment, sides) = afxdp::Attachment::open(plan)?;
                let sides = sides.into_iter().map(|(rx, tx)| (RxQueue::Afxdp(rx), TxQueue::Afxdp(tx))).collect();
                Ok((Self::Afxdp(attachment, promiscuous), sides))
            }
            Plan::Packet(plan) => {
                let (attachment, rx, tx) = packet::Attachment::open(plan)?;
                Ok((Self::Packet(attachment), vec![(RxQueue::Packet(rx), TxQueue::Packet(tx))]))
            }
        }
    }

    /// Where each queue's descriptors are.
    pub fn gauges(&self) -> Vec<Gauges> {
        match self {
            Self::Afxdp(attachment, _) => attachment.gauges(),
            Self::Packet(attachment) => vec![attachment.gauges()],
        }
    }

    /// Whether the kernel polls the device in our calls.
    pub fn is_busy_polled(&self) -> bool {
        match self {
            Self::Afxdp(attachment, _) => attachment.is_busy_polled(),
            Self::Packet(_) => false,
        }
    }

    /// Which way frames take between driver and us, where there are several.
    pub fn mode(&self) -> Option<afxdp::Mode> {
        match self {
            Self::Afxdp(attachment, _) => Some(attachment.mode),
            Self::Packet(_) => None,
        }
    }
}
