// SPDX-License-Identifier: Apache-2.0
//! The command line of `vhost-frontend`.
//!
//! Every setting of an end can stand in its `--end` list, or before it as an option of its own,
//! which then holds for all ends that follow.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::hostile::Case;
use super::traffic::{Arriving, Command, Crowd, EndSettings, Moving, RunSettings, Runner, seconds};
use super::{Error, Result};

/// Runs the command line `arguments` (without the program's name).
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let arguments: Vec<String> = arguments.collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.split_first() {
        Some((&"run", rest)) => run(rest),
        Some((&"crowd", rest)) => crowd(rest),
        Some((&"arriving", rest)) => arriving(rest),
        Some((&"moving", rest)) => moving(rest),
        Some((&"hostile", rest)) => hostile(rest),
        Some((&("help" | "--help" | "-h"), _)) => {
            say(&help());
            Ok(())
        }
        Some((other, _)) => {
            Err(Error::Config(format!("'{other}' is not a command: run, crowd, arriving, moving, hostile or help")))
        }
        None => Err(Error::Config("a command is needed: run, crowd, arriving, moving, hostile or help".into())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing more can be done when standard error is gone too.
            let _ = writeln!(std::io::stderr(), "vhost-frontend: {error}");
            ExitCode::from(if matches!(error, Error::Config(_)) { 2 } else { 1 })
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    let mut run = RunSettings::default();
    let mut common = EndSettings::default();
    let mut ends = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix("--") else {
            return Err(Error::Config(format!("'{word}' is not an option; see vhost-frontend help")));
        };
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, value),
            None => (option, next_value(option, words.next().copied())?),
        };
        if name == "end" {
            ends.push(end(&common, value)?);
        } else if RunSettings::NAMES.iter().any(|(known, _)| *known == name) {
            run.set(name, value)?;
        } else {
            common.set(name, value)?;
        }
    }
    let report = Runner::new(run, ends)?.run()?;
    say(&format!("{report}\n"));
    Ok(())
}

/// Silent guests on all sockets, until standard input ends.
fn crowd(words: &[&str]) -> Result<()> {
    let mut common = EndSettings::default();
    let mut ends = Vec::new();
    let mut timeout = Duration::from_secs(20);
    for word in words {
        let option = word.strip_prefix("--").and_then(|option| option.split_once('='));
        match option {
            Some(("end", list)) => ends.push(end(&common, list)?),
            Some(("link-timeout", value)) => timeout = seconds("link-timeout", value)?,
            Some((name, value)) => common.set(name, value)?,
            None => return Err(Error::Config(format!("'{word}' is not --name=value; see vhost-frontend help"))),
        }
    }
    let mut crowd = Crowd::new(ends)?;
    crowd.join(timeout)?;
    say("{\"event\": \"ready\"}\n");
    // Whatever is typed is of no interest, its end is.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    Ok(())
}

/// A guest that moves in by post-copy, its frames late, until standard input ends.
fn arriving(words: &[&str]) -> Result<()> {
    let mut settings = EndSettings::default();
    let mut late = Duration::from_millis(20);
    let mut timeout = Duration::from_secs(20);
    for word in words {
        match word.strip_prefix("--").and_then(|option| option.split_once('=')) {
            Some(("end", list)) => settings = end(&settings, list)?,
            Some(("late", value)) => late = seconds("late", value)?,
            Some(("link-timeout", value)) => timeout = seconds("link-timeout", value)?,
            Some((name, value)) => settings.set(name, value)?,
            None => return Err(Error::Config(format!("'{word}' is not --name=value; see vhost-frontend help"))),
        }
    }
    let guest = Arriving::begin(&settings, late, timeout)?;
    say("{\"event\": \"ready\"}\n");
    // Whatever is typed is of no interest, its end is.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    let (asked, taken) = guest.finish()?;
    say(&format!("{{\"pages_asked\": {asked}, \"frames_taken\": {taken}}}\n"));
    Ok(())
}

/// A guest that moves from one port to another while somebody sends to it.
fn moving(words: &[&str]) -> Result<()> {
    let mut common = EndSettings::default();
    let mut ends = Vec::new();
    let mut rate = 20_000;
    let mut timeout = Duration::from_secs(20);
    for word in words {
        match word.strip_prefix("--").and_then(|option| option.split_once('=')) {
            Some(("end", list)) => ends.push(end(&common, list)?),
            Some(("rate", value)) => {
                rate = value.parse().map_err(|_| Error::Config(format!("rate cannot be '{value}'")))?;
            }
            Some(("link-timeout", value)) => timeout = seconds("link-timeout", value)?,
            Some((name, value)) => common.set(name, value)?,
            None => return Err(Error::Config(format!("'{word}' is not --name=value; see vhost-frontend help"))),
        }
    }
    let ends = <[EndSettings; 3]>::try_from(ends)
        .map_err(|_| Error::Config("a move has three ends: who sends, where the guest is, where it goes".into()))?;
    let report = Moving::join(ends, timeout)?.go(rate)?;
    say(&format!("{report}\n"));
    Ok(())
}

/// Attacks a back-end by name, or lists the names.
fn hostile(words: &[&str]) -> Result<()> {
    if words == ["--list"] {
        let mut text = String::new();
        for case in Case::all() {
            row(&mut text, case.name(), case.what());
        }
        row(&mut text, "hang-up-at:N", "closes the socket instead of sending message N of an honest session");
        say(&text);
        return Ok(());
    }
    let Some((name, options)) = words.split_first() else {
        return Err(Error::Config("hostile needs the name of a case, or --list".into()));
    };
    let case = Case::find(name)?;
    let mut settings = EndSettings::default();
    let mut hold = Duration::from_secs(1);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let Some(option) = option.strip_prefix("--") else {
            return Err(Error::Config(format!("'{option}' is not an option; see vhost-frontend help")));
        };
        let value = next_value(option, options.next().copied())?;
        match option {
            "hold" => hold = seconds(option, value)?,
            "end" => settings = end(&settings, value)?,
            _ => settings.set(option, value)?,
        }
    }
    let report = case.run(&settings, hold)?;
    say(&format!("{report}\n"));
    Ok(())
}

fn row(text: &mut String, name: &str, what: &str) {
    text.push_str("  ");
    text.push_str(name);
    text.extend(std::iter::repeat_n(' ', 28_usize.saturating_sub(name.len())));
    text.push_str(what);
    text.push('\n');
}

fn next_value<'a>(name: &str, value: Option<&'a str>) -> Result<&'a str> {
    value.ok_or_else(|| Error::Config(format!("--{name} needs a value")))
}

fn end(common: &EndSettings, list: &str) -> Result<EndSettings> {
    let mut settings = common.clone();
    for entry in list.split(',').filter(|entry| !entry.is_empty()) {
        let (name, value) =
            entry.split_once('=').ok_or_else(|| Error::Config(format!("'{entry}' in --end is not name=value")))?;
        settings.set(name, value)?;
    }
    if settings.frontend.socket.as_os_str().is_empty() {
        return Err(Error::Config("an end needs socket=PATH".into()));
    }
    Ok(settings)
}

fn help() -> String {
    let mut text = String::from(
        "vhost-frontend: a vhost-user front-end that sends and checks numbered frames\n\n\
         vhost-frontend run [--OPTION VALUE]… --end NAME=VALUE[,NAME=VALUE]… [--end …]\n\
         vhost-frontend crowd [--link-timeout=SECONDS] [--SETTING=VALUE]… --end=NAME=VALUE[,NAME=VALUE]… [--end=…]\n\
         vhost-frontend arriving [--late=SECONDS] [--link-timeout=SECONDS] --end=NAME=VALUE[,NAME=VALUE]…\n\
         vhost-frontend moving [--rate=FRAMES/S] [--link-timeout=SECONDS] --end=SENDER --end=HERE --end=THERE\n\
         vhost-frontend hostile CASE [--hold SECONDS] --end NAME=VALUE[,NAME=VALUE]…\n\
         vhost-frontend hostile --list\n\n\
         options of a run:\n",
    );
    let list = |text: &mut String, names: &[(&str, &str)]| {
        for (name, what) in names {
            row(text, name, what);
        }
    };
    list(&mut text, RunSettings::NAMES);
    text.push_str("\nsettings of an end, in --end or as options for all ends after them:\n");
    list(&mut text, EndSettings::NAMES);
    text.push_str("\ncommands on standard input, with --control yes:\n");
    list(&mut text, Command::NAMES);
    text.push_str("\nThe report is one JSON object on standard output.\n");
    text
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that went away is not our concern.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
