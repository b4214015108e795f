//! Network devices of the calling thread's namespace: is it there, is it up, how many queues, how long a frame.
//!
//! By ioctl and not by sysfs: that shows the devices of whoever mounted it.
#![allow(unsafe_code, reason = "netdevice(7) and SIOCETHTOOL take raw structures")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const ETHTOOL_GSET: u32 = 0x01;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// A device as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its number: another one is another device, whatever its name.
    pub index: u32,
    /// Administratively up.
    pub is_up: bool,
    /// A carrier, or whatever its driver takes for one.
    pub has_carrier: bool,
    /// Longest packet, bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub address: [u8; 6],
}

/// What does not change while a device lives, as far as its driver tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Its driver's name.
    pub driver: Option<String>,
    /// Receive queues.
    pub rx_queues: Option<u32>,
    /// Transmit queues.
    pub tx_queues: Option<TxQueues>,
    /// Mbit/s.
    pub speed_mbps: Option<u32>,
    /// NUMA node.
    pub numa: Option<u32>,
}

/// A device's transmit queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxQueues {
    /// Those it has, not 0.
    pub count: u32,
    /// As many as it can be given.
    pub max: u32,
    /// What `ethtool -L` calls them.
    pub kind: &'static str,
}

/// A name that a device can have: 1 to 15 bytes, no slash, no space, no NUL.
pub fn is_name(name: &str) -> bool {
    let is_odd = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
    (1..libc::IFNAMSIZ).contains(&name.len()) && !name.bytes().any(is_odd) && name != "." && name != ".."
}

/// The way to ask: a socket, in the namespace it was made in.
#[derive(Debug)]
pub struct Asker(OwnedFd);

impl Asker {
    /// In the namespace of the calling thread.
    pub fn new() -> io::Result<Self> {
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made `fd` and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The device of that name; None if there is none.
    pub fn find(&self, name: &str) -> io::Result<Option<Device>> {
        let Ok(c_name) = CString::new(name) else { return Ok(None) };
        let mut request = request(&c_name);
        match self.ioctl(libc::SIOCGIFINDEX, &mut request) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            other => other?,
        }
        // SAFETY: SIOCGIFINDEX fills this member, an integer.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS fills this member, an integer.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        self.ioctl(libc::SIOCGIFMTU, &mut request)?;
        // SAFETY: SIOCGIFMTU fills this member, an integer.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        self.ioctl(libc::SIOCGIFHWADDR, &mut request)?;
        // SAFETY: SIOCGIFHWADDR fills this member, bytes.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        let [address @ .., _, _, _, _, _, _, _, _] = data.map(|byte| byte.to_ne_bytes()[0]);
        let has = |flag: libc::c_int| flags & flag != 0;
        let (is_up, has_carrier) = (has(libc::IFF_UP), has(libc::IFF_RUNNING));
        let (index, mtu) = (index.unsigned_abs(), mtu.unsigned_abs());
        Ok(Some(Device { index, is_up, has_carrier, mtu, address }))
    }

    /// Changes a device's MTU.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> io::Result<()> {
        let c_name = CString::new(name).map_err(io::Error::other)?;
        let mut request = request(&c_name);
        request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).map_err(io::Error::other)?;
        self.ioctl(libc::SIOCSIFMTU, &mut request)
    }

    /// What else is known of a device; a driver that does not answer leaves it unknown.
    pub fn details(&self, name: &str) -> Details {
        let Ok(c_name) = CString::new(name) else { return Details::default() };
        let ask = |command| self.ethtool(&c_name, command).ok();
        let driver = ask(ETHTOOL_GDRVINFO).and_then(|answer| {
            let text = answer.get(4..36)?.split(|byte| *byte == 0).next()?;
            (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
        });
        // struct ethtool_channels: maxima of rx, tx, other, combined, then those in use.
        let channels = ask(ETHTOOL_GCHANNELS);
        let rx_queues = channels.map(|answer| word(&answer, 20).saturating_add(word(&answer, 32)));
        let tx_queues = channels.map(|answer| TxQueues {
            count: word(&answer, 24).saturating_add(word(&answer, 32)),
            max: word(&answer, 8).saturating_add(word(&answer, 16)),
            kind: if word(&answer, 16) > 0 { "combined" } else { "tx" },
        });
        // struct ethtool_cmd: the speed's low half at 12, its high half at 28.
        let speed_mbps = ask(ETHTOOL_GSET).and_then(|answer| {
            let [low, high] = [12, 28].map(|at| word(&answer, at) & 0xffff);
            let speed = high << 16 | low;
            (speed != 0 && speed != u32::MAX && speed != 0xffff).then_some(speed)
        });
        let numa = std::fs::read_to_string(format!("/sys/class/net/{name}/device/numa_node")).ok();
        let numa = numa.and_then(|text| text.trim().parse().ok());
        let (rx_queues, tx_queues) = (rx_queues.filter(|count| *count > 0), tx_queues.filter(|tx| tx.count > 0));
        Details { driver, rx_queues, tx_queues, speed_mbps, numa }
    }

    fn ethtool(&self, name: &CString, command: u32) -> io::Result<[u8; 256]> {
        // As u32s, so that it is aligned; longer than any structure asked for here.
        let mut answer = [0_u32; 64];
        if let Some(first) = answer.first_mut() {
            *first = command;
        }
        let mut request = request(name);
        request.ifr_ifru.ifru_data = answer.as_mut_ptr().cast();
        self.ioctl(libc::SIOCETHTOOL, &mut request)?;
        let mut bytes = [0; 256];
        for (to, from) in bytes.iter_mut().zip(answer.iter().flat_map(|word| word.to_ne_bytes())) {
            *to = from;
        }
        Ok(bytes)
    }

    /// A command of `SIOCETHTOOL` over words of the caller's, the command first: they are as many as the command says that
    /// there are.
    pub(super) fn ethtool_words(&self, name: &str, words: &mut [u32]) -> io::Result<()> {
        let c_name = CString::new(name).map_err(io::Error::other)?;
        let mut request = request(&c_name);
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        self.ioctl(libc::SIOCETHTOOL, &mut request)
    }

    fn ioctl(&self, command: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: a live ifreq, as all these commands take; where it points at more, `ethtool` keeps that live.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), command, std::ptr::from_mut(request)) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn request(name: &CString) -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.as_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_and_one_that_is_not_there_is_none() {
        let asker = Asker::new().unwrap();
        let lo = asker.find("lo").unwrap().expect("every namespace has one");
        assert!(lo.index > 0 && lo.mtu >= 1500 && lo.address == [0; 6], "{lo:?}");
        assert_eq!(asker.find("nosuchdevice0").unwrap(), None);
        assert_eq!(asker.details("nosuchdevice0"), Details::default());
    }

    #[test]
    fn names_that_the_kernel_refuses_are_none() {
        assert!(["eth0", "enp3s0f0np0", "a.b-c_d"].into_iter().all(is_name));
        assert!(["", "a/b", "a b", "..", "a:1", "sixteen-bytes-xx"].into_iter().all(|name| !is_name(name)));
    }
}
