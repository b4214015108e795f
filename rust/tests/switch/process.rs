// SPDX-License-Identifier: Apache-2.0
//! The switch as a process of its own, so that a test can kill it without a word.
//!
//! It is this program, started anew with one test to run, `killed::the_switch`: that adds ports to [`switch`] and serves
//! until it is killed.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use ovsvhost::datapath::Datapath;
use ovsvhost::recovery::Recovery;

const FOLDER: &str = "OVSVHOST_TEST_FOLDER";
/// How long frames wait for those who were there before: longer than any test.
const HOLD: Duration = Duration::from_secs(3600);

/// In the process: the switch, with a bridge and no port, and the folder for its sockets.
pub fn switch() -> (Datapath, PathBuf) {
    let folder = PathBuf::from(std::env::var_os(FOLDER).expect("started by its test"));
    let datapath = Datapath::with_recovery(&[], None, Recovery::open(&folder, HOLD).unwrap()).unwrap();
    datapath.add_bridge("br0").unwrap();
    (datapath, folder)
}

/// In the process: answers each question with a line, until it is killed or its test is gone.
pub fn serve(answer: impl Fn() -> String) {
    // Behind what the test's runner wrote.
    println!("\nready");
    std::io::stdout().flush().unwrap();
    for _ in std::io::stdin().lines() {
        println!("{}", answer());
        std::io::stdout().flush().unwrap();
    }
}

/// The process while it lives; killed when it is dropped.
pub struct Process {
    child: Child,
    asking: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::the_switch", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (asking, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut answers = BufReader::new(answers).lines();
        assert!(answers.any(|line| line.unwrap() == "ready"), "the switch started");
        Self { child, asking, answers }
    }

    pub fn ask(&mut self) -> String {
        self.asking.write_all(b"\n").unwrap();
        self.answers.next().unwrap().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
