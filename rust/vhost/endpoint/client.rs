//! The side that connects: the VMM makes the socket, when it pleases and as often as it pleases.
//!
//! A watch on the nearest directory that exists says when to try again; a retry, 5 ms doubling to 1 s, always runs
//! besides, for what no watch can see (a VMM that listens later, a symbolic link, no watch to be had).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Control, Port, permission, serve};
use crate::error::Result;
use crate::sys::inotify::DirectoryWatch;
use crate::sys::socket;
use crate::vhost::Level;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// A session that lasted this long was a real one: the next try starts early again.
const REAL_SESSION: Duration = Duration::from_secs(1);

/// An obstacle younger than this may be a VMM between its bind and its listen; it is no line in the log.
const LASTING: Duration = Duration::from_millis(200);

/// Why a connection cannot be made.
#[derive(Debug, PartialEq, Eq)]
enum Obstacle {
    /// The VMM has not been there yet; nothing is wrong.
    Absent(String),
    /// Somebody has to do something.
    Blocked(String),
}

/// A watch, and what it waits for.
struct Watch {
    directory: PathBuf,
    inotify: DirectoryWatch,
}

/// The state between two sessions.
pub(super) struct Client<'a> {
    port: &'a Arc<Port>,
    control: &'a Control,
    retry: Duration,
    watch: Option<Watch>,
    /// No watch could be had; said once.
    blind: bool,
    /// The obstacle in the way, since when, and whether the log knows.
    obstacle: Option<(String, Instant, bool)>,
}

impl<'a> Client<'a> {
    pub(super) fn new(port: &'a Arc<Port>, control: &'a Control) -> Self {
        Self { port, control, retry: FIRST_RETRY, watch: None, blind: false, obstacle: None }
    }

    /// Connects, serves, and again, until told to stop.
    pub(super) fn run(mut self) -> Result<()> {
        let text = format!(
            "vHost User device '{}' created in 'client' mode, using client socket '{}'",
            self.port.name,
            self.port.path()
        );
        self.port.event(Level::Info, "created", text);
        while !self.control.is_stopping() {
            match socket::connect(&self.port.socket) {
                Ok(stream) => {
                    self.watch = None;
                    self.obstacle = None;
                    let began = Instant::now();
                    if !serve(self.port, self.control, stream, None) {
                        break;
                    }
                    if began.elapsed() >= REAL_SESSION {
                        self.retry = FIRST_RETRY;
                    }
                    self.control
                        .publish_waiting(Some(format!("the VMM behind '{}' to be back", self.port.path())), None);
                }
                Err(e) => self.meet(obstacle(&self.port.socket, &e)),
            }
            self.wait()?;
        }
        Ok(())
    }

    fn meet(&mut self, obstacle: Obstacle) {
        match obstacle {
            Obstacle::Absent(text) => {
                self.obstacle = None;
                self.control.publish_waiting(Some(text), None);
            }
            Obstacle::Blocked(text) => {
                self.control.publish_waiting(None, Some(text.clone()));
                match &mut self.obstacle {
                    Some((known, since, logged)) if *known == text => {
                        if !*logged && since.elapsed() >= LASTING {
                            *logged = true;
                            self.port.event(Level::Warning, "notice", format!("{}: {text}", self.port.name));
                        }
                    }
                    other => *other = Some((text, Instant::now(), false)),
                }
            }
        }
    }

    /// Waits until a new try makes sense.
    fn wait(&mut self) -> Result<()> {
        if self.arm() {
            // What appeared before the watch was there would never be told.
            return Ok(());
        }
        let until = Instant::now() + self.retry;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let watched = self.watch.as_ref().map(|watch| &watch.inotify as &dyn AsRawFd);
            let woken = self.control.wait_with(watched, Some(left))?;
            if self.control.is_stopping() {
                return Ok(());
            }
            let told = woken && self.watch.as_ref().is_some_and(|watch| watch.inotify.take());
            if told {
                self.watch = None;
                self.retry = FIRST_RETRY;
                return Ok(());
            }
            if left.is_zero() {
                self.retry = (self.retry * 2).min(LAST_RETRY);
                return Ok(());
            }
        }
    }

    /// Watches the directory where the next missing part of the path has to appear. True if the watch is new.
    fn arm(&mut self) -> bool {
        let Some((directory, name)) = nearest(&self.port.socket) else { return false };
        if self.blind || self.watch.as_ref().is_some_and(|watch| watch.directory == directory) {
            return false;
        }
        match DirectoryWatch::new(&directory, &name) {
            Ok(inotify) => {
                self.watch = Some(Watch { directory, inotify });
                true
            }
            // Gone again, or not ours to read: the retry copes.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => false,
            Err(e) => {
                self.blind = true;
                let text = format!(
                    "{}: cannot watch '{}' ({e}); connecting may take up to a second; raise \
                     fs.inotify.max_user_instances and fs.inotify.max_user_watches",
                    self.port.name,
                    directory.display()
                );
                self.port.event(Level::Warning, "notice", text);
                false
            }
        }
    }
}

/// The nearest directory above `path` that exists, and the name that has to appear in it next.
fn nearest(path: &Path) -> Option<(PathBuf, OsString)> {
    let mut below = path;
    for directory in path.ancestors().skip(1) {
        if directory.is_dir() {
            return Some((directory.to_owned(), below.file_name()?.to_owned()));
        }
        below = directory;
    }
    None
}

/// Says in the user's words why `path` cannot be connected to.
fn obstacle(path: &Path, error: &io::Error) -> Obstacle {
    let shown = path.display();
    let kind = fs::metadata(path).map(|meta| meta.file_type());
    let text = match (error.raw_os_error(), kind) {
        (Some(libc::ENOENT), _) => {
            let text = match nearest(path) {
                Some((directory, _)) if Some(directory.as_path()) == path.parent() => {
                    format!("the VMM to create its socket '{shown}'")
                }
                _ => {
                    format!("the directory of '{shown}', which does not exist, and the VMM to create its socket there")
                }
            };
            return Obstacle::Absent(text);
        }
        (Some(libc::ECONNREFUSED), Ok(kind)) if kind.is_socket() => format!(
            "nobody listens on '{shown}': its VMM ended without removing it, or has not come that far; start the VMM, or \
             remove the file"
        ),
        (_, Ok(kind)) if kind.is_dir() => {
            format!("'{shown}' is a directory; vhost-server-path must name the socket that the VMM makes")
        }
        (_, Ok(kind)) if !kind.is_socket() => format!(
            "'{shown}' is not a socket but another kind of file; remove it, or set vhost-server-path to the VMM's socket"
        ),
        (Some(libc::EAGAIN), _) => format!(
            "'{shown}' has as many connections waiting as its VMM allows: it serves another back-end, or hangs; give \
             each port a socket of its own"
        ),
        (Some(libc::EPROTOTYPE), _) => format!("'{shown}' is no stream socket, so no VMM's vhost-user socket"),
        (Some(libc::ENOTDIR), _) => format!("a part of '{shown}' before the last is not a directory; correct the path"),
        (Some(libc::EACCES | libc::EPERM), _) => permission::denied(path, "write socket"),
        _ => format!("cannot connect to '{shown}': {error}"),
    };
    Obstacle::Blocked(text)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn met(path: &Path) -> Obstacle {
        obstacle(path, &socket::connect(path).unwrap_err())
    }

    fn blocked(path: &Path) -> String {
        match met(path) {
            Obstacle::Blocked(text) => text,
            Obstacle::Absent(text) => panic!("taken for absent: {text}"),
        }
    }

    #[test]
    fn a_socket_that_is_not_there_yet_is_waited_for() {
        let dir = TempDir::new().unwrap();
        let Obstacle::Absent(text) = met(&dir.as_path().join("s")) else { panic!() };
        assert!(text.starts_with("the VMM to create its socket '"), "{text}");
        let Obstacle::Absent(text) = met(&dir.as_path().join("a/b/s")) else { panic!() };
        assert!(text.contains("which does not exist"), "{text}");
    }

    #[test]
    fn what_is_at_the_path_instead_of_a_listening_socket_is_named() {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.as_path().join(name);
        File::create(at("file")).unwrap();
        drop(UnixListener::bind(at("dead")).unwrap());
        let _datagram = UnixDatagram::bind(at("datagram")).unwrap();
        assert!(blocked(dir.as_path()).contains("is a directory"));
        assert!(blocked(&at("file")).contains("is not a socket"));
        assert!(blocked(&at("file/below")).contains("is not a directory"));
        assert!(blocked(&at("dead")).contains("nobody listens"));
        assert!(blocked(&at("datagram")).contains("no stream socket"));
    }

    #[test]
    fn a_listener_with_a_full_queue_serves_someone_else() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("s");
        let _listener = socket::listen(socket::bind(&path).unwrap(), 0).unwrap();
        let _waiting = socket::connect(&path).unwrap();
        assert!(blocked(&path).contains("serves another back-end"));
    }

    #[test]
    fn the_nearest_directory_and_the_next_name_are_found() {
        let dir = TempDir::new().unwrap();
        let top = dir.as_path();
        assert_eq!(nearest(&top.join("s")), Some((top.to_owned(), "s".into())));
        assert_eq!(nearest(&top.join("a/b/s")), Some((top.to_owned(), "a".into())));
        assert_eq!(nearest(Path::new("/")), None);
    }
}
