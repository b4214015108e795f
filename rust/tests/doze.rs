//! Every order in which a poll thread and those who post to it can take their steps, tried by loom on the file that the
//! switch runs: its atomics are loom's here.
#![allow(clippy::unwrap_used, reason = "a test")]

use loom::sync::atomic;
use loom::sync::{Arc, Mutex};
use loom::thread;

#[path = "../pmd/doze.rs"]
mod doze;

use doze::Doze;

/// A mailbox of numbers.
#[derive(Default)]
struct Mailbox {
    doze: Doze,
    mail: Mutex<Vec<u32>>,
    woken: atomic::AtomicBool,
}

impl Mailbox {
    fn post(&self, number: u32) {
        self.mail.lock().unwrap().push(number);
        if self.doze.post() {
            self.woken.store(true, atomic::Ordering::SeqCst);
        }
    }

    fn take(&self) -> Vec<u32> {
        self.doze.take();
        std::mem::take(&mut self.mail.lock().unwrap())
    }
}

#[test]
fn nobody_posts_to_a_thread_that_sleeps_on() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::default());
        let poster = Arc::clone(&mailbox);
        let posted = thread::spawn(move || poster.post(1));
        let sleeps = mailbox.doze.about_to_sleep();
        posted.join().unwrap();
        let woken = mailbox.woken.load(atomic::Ordering::SeqCst);
        assert!(!sleeps || woken, "it sleeps, and its mail waits for ever");
        mailbox.doze.awake();
        assert!(!mailbox.doze.post(), "who is up need not be woken");
    });
}

#[test]
fn what_two_post_is_taken_once_and_nothing_is_left_unannounced() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::default());
        let posters = [1, 2].map(|number| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.post(number))
        });
        let mut taken = if mailbox.doze.is_pending() { mailbox.take() } else { Vec::new() };
        for poster in posters {
            poster.join().unwrap();
        }
        if mailbox.doze.is_pending() {
            taken.extend(mailbox.take());
        }
        taken.sort_unstable();
        assert_eq!(taken, [1, 2], "mail that no flag tells of");
    });
}
