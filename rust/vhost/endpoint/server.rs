//! The side that makes the socket file (`dpdkvhostuser`), owns it and removes it.
//!
//! The file appears whole: bound under another name, given its mode and owner, listening, then renamed. A file that is
//! there already is replaced only if it is a socket that nobody listens on, which is what a killed switch leaves; it is
//! removed at the end only if it is still the one we made.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{Control, Port, permission, serve};
use crate::error::{Error, Result};
use crate::sys::socket;
use crate::vhost::peer::Peer;
use crate::vhost::{EndpointConfig, Level, PortLink};

/// Front-ends that may wait to be accepted, or turned away.
const BACKLOG: i32 = 8;

/// How long to leave a front-end waiting that cannot be accepted for want of a descriptor.
const REST: Duration = Duration::from_millis(200);

/// Our socket.
pub(super) struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file we made.
    identity: (u64, u64),
}

impl Server {
    /// Makes the socket.
    ///
    /// # Errors
    /// `Config`: the path is taken by something that is not ours to replace. `Kernel`: it cannot be made.
    pub(super) fn bind(config: &EndpointConfig, link: &dyn PortLink) -> Result<Self> {
        static WARNED: AtomicBool = AtomicBool::new(false);
        let (name, path) = (&config.name, &config.socket);
        let replaces = clear_way(name, path)?;
        let (listener, identity) = make(config)?;
        if replaces {
            let text = format!("{name}: replaced the dead socket '{}', left by a process that ended", path.display());
            link.event(Level::Info, "notice", text);
        }
        let text = format!("Socket {} created for vhost-user port {name}", path.display());
        link.event(Level::Info, "listening", text);
        if !WARNED.swap(true, Ordering::Relaxed) {
            let text = "dpdkvhostuser ports are considered deprecated;  please migrate to dpdkvhostuserclient ports.";
            link.event(Level::Warning, "notice", text.to_owned());
        }
        Ok(Self { listener, path: path.clone(), identity })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Accepts, serves, and again, until told to stop.
    pub(super) fn run(self, port: &Arc<Port>, control: &Control) -> Result<()> {
        while !control.is_stopping() {
            let waiting_for = format!("a VMM to connect to '{}'", self.path.display());
            control.publish_waiting(Some(waiting_for), None);
            control.wait_with(Some(&self.listener), None)?;
            match self.accept() {
                Ok(stream) => {
                    if !serve(port, control, stream, Some(&self)) {
                        break;
                    }
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => {
                    let text = format!("cannot accept a VMM's connection: {e}; raise RLIMIT_NOFILE (ulimit -n)");
                    if control.trouble().as_ref() != Some(&text) {
                        port.event(Level::Error, "kernel_error", format!("{}: {text}", port.name));
                        control.set_trouble(text);
                    }
                    control.wait_with(None, Some(REST))?;
                }
            }
        }
        Ok(())
    }

    fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity) {
            // Not ours any more if this fails; there is nobody left to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes sure that the path may be taken. True if a dead socket is in the way, to be replaced.
fn clear_way(name: &str, path: &Path) -> Result<bool> {
    let shown = path.display();
    let refused = |what: String| Err(Error::Config(format!("{name}: cannot make socket '{shown}': {what}")));
    let kind = match fs::symlink_metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Error::kernel(format!("{name}: {}", permission::denied(path, "look at")), e));
        }
        Err(e) => return Err(Error::kernel(format!("{name}: cannot look at '{shown}'"), e)),
    };
    if !kind.is_socket() {
        let what = if kind.is_dir() {
            "a directory"
        } else if kind.is_file() {
            "a regular file"
        } else if kind.is_symlink() {
            "a symbolic link"
        } else {
            "a device or pipe"
        };
        return refused(format!("{what} is there and is not replaced; remove it or choose another name"));
    }
    match socket::connect(path) {
        Ok(stream) => {
            let who = match Peer::of(&stream) {
                Ok(peer) if i64::from(peer.pid) == i64::from(std::process::id()) => {
                    "another port of this switch".into()
                }
                Ok(peer) => peer.to_string(),
                Err(_) => "another process".into(),
            };
            refused(format!("{who} serves it; end that, or choose another name or directory"))
        }
        Err(e) => match e.raw_os_error() {
            Some(libc::ECONNREFUSED) => Ok(true),
            Some(libc::ENOENT) => Ok(false),
            Some(libc::EAGAIN) => refused("another process serves it; end that, or choose another name".into()),
            Some(libc::EPROTOTYPE) => refused("another process has a socket of another kind there".into()),
            _ => Err(Error::kernel(format!("{name}: cannot tell whether somebody serves '{shown}'"), e)),
        },
    }
}

/// Makes the listening socket and puts it at its path.
fn make(config: &EndpointConfig) -> Result<(UnixListener, (u64, u64))> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (name, path) = (&config.name, &config.socket);
    let kernel = |what: &str, e| Error::kernel(format!("{name}: {what} '{}'", path.display()), e);
    let parent = path.parent().unwrap_or(Path::new("/"));
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(parent);
    let directory = opened.map_err(|e| kernel("no directory, which must exist (create it), for socket", e))?;
    // Through the directory's descriptor, since the other name may be longer than a socket's path can be.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let other = format!("/proc/self/fd/{}/.vhost-{}-{count}", directory.as_raw_fd(), std::process::id());
    let other = PathBuf::from(other);
    let _ = fs::remove_file(&other);
    let bound = socket::bind(&other).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => {
            Error::kernel(format!("{name}: {}", permission::denied(parent, "write directory")), e)
        }
        _ => kernel("cannot make socket", e),
    });
    let made = bound.and_then(|bound| {
        lchown(&other, config.socket_owner, config.socket_group)
            .map_err(|e| kernel("cannot give its owner or group (socket-owner, socket-group) to socket", e))?;
        fs::set_permissions(&other, Permissions::from_mode(config.socket_mode & 0o777))
            .map_err(|e| kernel("cannot set the mode (socket-mode) of socket", e))?;
        let listener = socket::listen(bound, BACKLOG).map_err(|e| kernel("cannot listen on socket", e))?;
        let meta = fs::symlink_metadata(&other).map_err(|e| kernel("cannot look at socket", e))?;
        fs::rename(&other, path).map_err(|e| kernel("cannot put in place socket", e))?;
        Ok((listener, (meta.dev(), meta.ino())))
    });
    if made.is_err() {
        let _ = fs::remove_file(&other);
    }
    made
}
