//! Unix stream sockets beyond std: non-blocking connect, bind without listen, descriptors with close-on-exec, and
//! whether a peer process is gone.
//!
//! Nothing here blocks except [`exits_within`], which takes its longest wait as an argument.
#![allow(unsafe_code, reason = "recvmsg(2), connect(2), bind(2) and pidfd_open(2) take raw structures")]

use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// The longest path a Unix socket address holds, in bytes (`unix(7)`: 108 with the closing NUL).
pub const PATH_MAX: usize = 107;

/// Most descriptors taken from one `recvmsg(2)`; the kernel closes the rest and says so.
const FDS_MAX: usize = 32;

/// What one [`receive`] brought besides the bytes.
#[derive(Debug)]
pub struct Received {
    /// How many bytes; 0 is the end of the stream.
    pub bytes: usize,
    /// Descriptors, in the order they were sent, close-on-exec.
    pub files: Vec<File>,
    /// True if descriptors were lost: more than 32, or this process has no room for more.
    pub lost_files: bool,
}

/// Who holds the other end, as the kernel recorded it (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Process, 0 if it lives in a pid namespace we cannot see.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

fn checked(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() || bytes.len() > PATH_MAX || bytes.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    addr.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    for (to, from) in addr.sun_path.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let size = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    Ok((addr, libc::socklen_t::try_from(size).unwrap_or_default()))
}

fn stream_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes no pointers.
    let fd = checked(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: the kernel just made `fd` and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects without waiting. The stream stays non-blocking.
///
/// # Errors
/// `WouldBlock`: somebody listens, but its queue of waiting connections is full. Else errno of `connect(2)`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (addr, size) = address(path)?;
    let socket = stream_socket()?;
    // SAFETY: `addr` is a live sockaddr_un and `size` is within it.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const addr).cast(), size) })?;
    Ok(socket.into())
}

/// Makes a socket file that refuses every connection until [`listen`].
pub fn bind(path: &Path) -> io::Result<OwnedFd> {
    let (addr, size) = address(path)?;
    let socket = stream_socket()?;
    // SAFETY: `addr` is a live sockaddr_un and `size` is within it.
    checked(unsafe { libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), size) })?;
    Ok(socket)
}

/// Opens a bound socket for connections; `backlog` of them may wait. `accept` on the listener does not block.
pub fn listen(socket: OwnedFd, backlog: i32) -> io::Result<UnixListener> {
    // SAFETY: listen(2) takes no pointers.
    checked(unsafe { libc::listen(socket.as_raw_fd(), backlog) })?;
    Ok(socket.into())
}

/// Who is at the other end.
pub fn peer(stream: &UnixStream) -> io::Result<Credentials> {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: `cred` is a live ucred of `size` bytes.
    checked(unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut cred).cast(), &raw mut size)
    })?;
    Ok(Credentials { pid: cred.pid, uid: cred.uid, gid: cred.gid })
}

/// Sends what fits now, without waiting and without SIGPIPE; a copy of `file` goes with the first byte.
pub fn send_with(stream: &UnixStream, bytes: &[u8], file: Option<&File>) -> io::Result<usize> {
    // As u64s, so that it is aligned for a cmsghdr: one header and one descriptor, padded, are 24 bytes.
    let mut control = [0_u64; 3];
    const { assert!(size_of::<RawFd>() == 4) };
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if let Some(file) = file {
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = size_of_val(&control);
        // SAFETY: CMSG_LEN computes a length.
        let len = unsafe { libc::CMSG_LEN(4) } as usize;
        let head = libc::cmsghdr { cmsg_len: len, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS };
        // SAFETY: the control buffer is live, aligned and longer than a header.
        unsafe { control.as_mut_ptr().cast::<libc::cmsghdr>().write(head) };
        // SAFETY: the buffer holds the header just written; it only computes where the data starts.
        let data = unsafe { libc::CMSG_DATA(control.as_ptr().cast()) };
        // SAFETY: the buffer has room for one descriptor behind the header.
        unsafe { data.cast::<[u8; size_of::<RawFd>()]>().write(file.as_raw_fd().to_ne_bytes()) };
    }
    // SAFETY: `msg` points at `bytes` and `control`, both live, with their sizes; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const msg, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives up to `buffer.len()` bytes and the descriptors that came with them, without waiting.
pub fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<Received> {
    // As u64s, so that it is aligned for a cmsghdr: one header and 32 descriptors are 144 bytes.
    let mut control = [0_u64; 18];
    const { assert!(size_of::<libc::cmsghdr>() + FDS_MAX * size_of::<RawFd>() <= 18 * size_of::<u64>()) };
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `msg` points at `buffer` and `control`, both live and exclusively borrowed, with their sizes.
    let bytes = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut msg, flags) };
    let bytes = usize::try_from(bytes).map_err(|_| io::Error::last_os_error())?;
    Ok(Received { bytes, files: files(&msg), lost_files: msg.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Takes ownership of every descriptor in a received message.
fn files(msg: &libc::msghdr) -> Vec<File> {
    let mut files = Vec::new();
    // SAFETY: recvmsg(2) filled `msg`; its control buffer is live while `receive` runs.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(msg) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give a whole cmsghdr inside the control buffer, aligned by its type.
        let head = unsafe { next.read() };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            let len = head.cmsg_len.saturating_sub(size_of::<libc::cmsghdr>()) / size_of::<RawFd>();
            // SAFETY: as above; it only computes where the data starts.
            let data = unsafe { libc::CMSG_DATA(next) };
            for at in 0..len.min(FDS_MAX) {
                let place = data.wrapping_add(at * size_of::<RawFd>()).cast::<[u8; size_of::<RawFd>()]>();
                // SAFETY: the kernel wrote `len` descriptors there, inside the control buffer.
                let fd = RawFd::from_ne_bytes(unsafe { place.read() });
                // SAFETY: the kernel just installed `fd` in this process for us; it appears once in the message.
                files.push(unsafe { File::from_raw_fd(fd) });
            }
        }
        // SAFETY: `msg` is as recvmsg(2) left it and `next` is one of its headers.
        next = unsafe { libc::CMSG_NXTHDR(msg, next) };
    }
    files
}

/// True if process `pid` is gone, or goes within `wait`. False too if the kernel cannot tell.
pub fn exits_within(pid: i32, wait: Duration) -> bool {
    // SAFETY: pidfd_open(2) takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Ok(fd) = RawFd::try_from(fd) else { return false };
    if fd < 0 {
        return io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
    }
    // SAFETY: the kernel just made `fd` and nobody else owns it.
    let process = unsafe { OwnedFd::from_raw_fd(fd) };
    wait_for(&process, libc::POLLIN, wait).unwrap_or(false)
}

/// True once `fd` is ready for `events` (`poll(2)`), false after `wait`.
pub fn wait_for(fd: &impl AsRawFd, events: i16, wait: Duration) -> io::Result<bool> {
    let [ready] = wait_any([Some(fd)], events, Some(wait))?;
    Ok(ready)
}

/// Waits until one of `fds` is ready for `events`, or `wait` is over (None: as long as it takes). Says of each whether
/// it is ready, which an error or a hang-up is too. Needs no descriptor of its own, unlike epoll.
pub fn wait_any<const N: usize>(
    fds: [Option<&dyn AsRawFd>; N],
    events: i16,
    wait: Option<Duration>,
) -> io::Result<[bool; N]> {
    // A negative descriptor is passed over.
    let mut entries = fds.map(|fd| libc::pollfd { fd: fd.map_or(-1, AsRawFd::as_raw_fd), events, revents: 0 });
    // Rounded up, or the last fraction of a millisecond would be spent spinning.
    let ms = wait.map_or(-1, |wait| i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
    let len = libc::nfds_t::try_from(N).unwrap_or_default();
    // SAFETY: `entries` holds `len` live pollfds; their owners are borrowed, so they are open.
    match checked(unsafe { libc::poll(entries.as_mut_ptr(), len, ms) }) {
        Ok(_) => Ok(entries.map(|entry| entry.revents != 0)),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    fn close_on_exec(fd: &impl AsFd) -> bool {
        let raw = fd.as_fd().as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{raw}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        u32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_CLOEXEC.unsigned_abs() != 0
    }

    #[test]
    fn descriptors_arrive_in_order_and_close_on_exec() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (a, b) = (File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap());
        theirs.send_with_fds(&[&b"hello"[..]], &[a.as_raw_fd(), b.as_raw_fd()]).unwrap();
        let mut buffer = [0; 16];
        let got = receive(&ours, &mut buffer).unwrap();
        assert_eq!((got.bytes, got.files.len(), got.lost_files), (5, 2, false));
        let names: Vec<_> =
            got.files.iter().map(|f| std::fs::read_link(format!("/proc/self/fd/{}", f.as_raw_fd())).unwrap()).collect();
        assert_eq!(names, ["/dev/null", "/dev/zero"].map(std::path::PathBuf::from));
        assert!(got.files.iter().all(close_on_exec));
    }

    #[test]
    fn more_descriptors_than_fit_are_closed_and_reported() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        theirs.send_with_fds(&[&b"x"[..]], &[null.as_raw_fd(); 40]).unwrap();
        let got = receive(&ours, &mut [0; 1]).unwrap();
        assert!(got.lost_files);
        assert!(got.files.len() <= FDS_MAX);
    }

    #[test]
    fn nothing_to_read_is_would_block_and_hang_up_is_zero_bytes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(receive(&ours, &mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(b"z").unwrap();
        drop(theirs);
        assert_eq!(receive(&ours, &mut [0; 4]).unwrap().bytes, 1);
        assert_eq!(receive(&ours, &mut [0; 4]).unwrap().bytes, 0);
    }

    #[test]
    fn a_bound_socket_refuses_until_it_listens() {
        let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let path = dir.as_path().join("s");
        let socket = bind(&path).unwrap();
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _listener = listen(socket, 1).unwrap();
        let stream = connect(&path).unwrap();
        assert_eq!(peer(&stream).unwrap().pid, i32::try_from(std::process::id()).unwrap());
    }

    #[test]
    fn a_path_that_is_too_long_or_holds_nul_is_refused() {
        for path in ["x".repeat(108), "a\0b".into(), String::new()] {
            assert_eq!(connect(Path::new(&path)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_process_that_ended_is_seen() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(exits_within(pid, Duration::from_secs(5)));
        child.wait().unwrap();
        assert!(!exits_within(i32::try_from(std::process::id()).unwrap(), Duration::ZERO));
    }
}
