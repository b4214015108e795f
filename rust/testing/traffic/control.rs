// SPDX-License-Identifier: Apache-2.0
//! Commands while a run is under way, one a line on standard input.

use std::io::BufRead;
use std::sync::mpsc;
use std::thread;

use crate::testing::{Error, Result};

/// What can be asked of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print a report now.
    Stats,
    /// End the run: drain, report, stop the rings.
    Stop,
    /// Send no more numbered frames.
    Pause,
    /// Send again.
    Resume,
    /// Announce the addresses of all ends.
    Announce,
    /// Enable a queue pair of an end.
    EnableQueue(usize, u16),
    /// Disable a queue pair of an end.
    DisableQueue(usize, u16),
    /// Stop all rings of an end, as a virtual machine that is paused does.
    StopRings(usize),
    /// Start them again, where the back-end said they stopped.
    StartRings(usize),
    /// Reset both rings of a queue pair of an end, and start them anew.
    ResetQueue(usize, u16),
    /// Close an end's socket without a word; it comes back by itself.
    HangUp(usize),
}

impl Command {
    /// The commands with their arguments, for the help text.
    pub const NAMES: &[(&str, &str)] = &[
        ("stats", "print a report now"),
        ("stop", "end the run: drain, report, stop the rings"),
        ("pause | resume", "stop or go on sending"),
        ("announce", "announce the addresses of all ends"),
        ("enable-queue N [a|b]", "enable queue pair N of an end"),
        ("disable-queue N [a|b]", "disable queue pair N of an end"),
        ("stop-rings [a|b]", "stop all rings of an end, as a paused virtual machine does"),
        ("start-rings [a|b]", "start them where the back-end said they stopped"),
        ("reset-queue N [a|b]", "reset both rings of queue pair N of an end and start them anew"),
        ("hang-up [a|b]", "close an end's socket without a word; it comes back by itself"),
    ];

    /// Reads one line.
    ///
    /// # Errors
    /// `Config` when it is not a command.
    pub fn parse(line: &str) -> Result<Self> {
        let wrong = || Error::Config(format!("'{}' is not a command", line.trim()));
        let end = |word: Option<&str>| match word {
            None | Some("a") => Ok(0),
            Some("b") => Ok(1),
            Some(_) => Err(wrong()),
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let pair = || words.get(1).and_then(|word| word.parse().ok()).ok_or_else(wrong);
        match words.first().copied() {
            Some("stats") => Ok(Self::Stats),
            Some("stop") => Ok(Self::Stop),
            Some("pause") => Ok(Self::Pause),
            Some("resume") => Ok(Self::Resume),
            Some("announce") => Ok(Self::Announce),
            Some("enable-queue") => Ok(Self::EnableQueue(end(words.get(2).copied())?, pair()?)),
            Some("disable-queue") => Ok(Self::DisableQueue(end(words.get(2).copied())?, pair()?)),
            Some("reset-queue") => Ok(Self::ResetQueue(end(words.get(2).copied())?, pair()?)),
            Some("stop-rings") => Ok(Self::StopRings(end(words.get(1).copied())?)),
            Some("start-rings") => Ok(Self::StartRings(end(words.get(1).copied())?)),
            Some("hang-up") => Ok(Self::HangUp(end(words.get(1).copied())?)),
            _ => Err(wrong()),
        }
    }

    /// Commands from standard input, read by a thread of their own; its end is not a command.
    pub(super) fn from_stdin() -> mpsc::Receiver<Result<Self>> {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if !line.trim().is_empty() && sender.send(Self::parse(&line)).is_err() {
                    return;
                }
            }
        });
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_with_their_arguments() {
        assert_eq!(Command::parse("disable-queue 1 b\n").unwrap(), Command::DisableQueue(1, 1));
        assert_eq!(Command::parse("enable-queue 0").unwrap(), Command::EnableQueue(0, 0));
        assert_eq!(Command::parse("reset-queue 3 b").unwrap(), Command::ResetQueue(1, 3));
        assert_eq!(Command::parse("stop-rings").unwrap(), Command::StopRings(0));
        assert_eq!(Command::parse(" stop ").unwrap(), Command::Stop);
        assert!(Command::parse("enable-queue").is_err());
        assert!(Command::parse("hang-up c").is_err());
    }
}
