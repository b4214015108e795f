// SPDX-License-Identifier: Apache-2.0
//! Reports as JSON, without a library: the front-end only writes it.

use std::fmt;

use super::counters::{ReceiveCounters, SendCounters};
use super::end::End;
use crate::testing::frames::{Account, Corruption};
use crate::testing::frontend::Session;
use crate::testing::wire::features::{self, VIRTIO};

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Count(u64),
    /// A number; what is not finite is written as `null`.
    Number(f64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object; names in the order they were put in.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// An object of these entries.
    pub fn object<const N: usize>(entries: [(&str, Json); N]) -> Self {
        Self::Object(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The value called `name`, of an object.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(entries) => entries.iter().find(|(known, _)| known == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The values of an array; none of anything else.
    pub fn items(&self) -> &[Self] {
        match self {
            Self::List(values) => values,
            _ => &[],
        }
    }

    /// The whole number called `name`; 0 when there is none.
    pub fn count(&self, name: &str) -> u64 {
        match self.get(name) {
            Some(Self::Count(count)) => *count,
            _ => 0,
        }
    }

    /// A string.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) if number.is_finite() => write!(f, "{number}"),
            Self::Null | Self::Number(_) => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Count(count) => write!(f, "{count}"),
            Self::Text(text) => write_text(f, text),
            Self::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Object(entries) => {
                f.write_str("{")?;
                for (index, (name, value)) in entries.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    write_text(f, name)?;
                    write!(f, ": {value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for letter in text.chars() {
        match letter {
            '"' | '\\' => write!(f, "\\{letter}")?,
            control if u32::from(control) < 0x20 => write!(f, "\\u{:04x}", u32::from(control))?,
            other => write!(f, "{other}")?,
        }
    }
    f.write_str("\"")
}

/// `part / whole`, 0 for nothing of nothing.
#[expect(clippy::cast_precision_loss, reason = "shares and rates need no more than 52 bits")]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// What an end counted up to one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Snapshot {
    pub(super) sent: SendCounters,
    pub(super) received: ReceiveCounters,
}

impl Snapshot {
    pub(super) fn of(end: &End) -> Self {
        let mut total = Self::default();
        for sender in end.senders() {
            let counters = sender.counters();
            total.sent.frames += counters.frames;
            total.sent.bytes += counters.bytes;
            total.sent.given_up += counters.given_up;
            total.sent.kicks += counters.kicks;
            total.sent.tries += counters.tries;
            total.sent.full_tries += counters.full_tries;
        }
        for receiver in end.receivers() {
            let counters = receiver.counters();
            total.received.frames += counters.frames;
            total.received.bytes += counters.bytes;
            total.received.kicks += counters.kicks;
            total.received.foreign += counters.foreign;
            total.received.behind += counters.behind;
            total.received.numbers += counters.numbers;
            total.received.whole += counters.whole;
            total.received.fragments += counters.fragments;
            total.received.merged += counters.merged;
            for (sum, count) in total.received.corrupt.iter_mut().zip(counters.corrupt) {
                *sum += count;
            }
        }
        total
    }
}

/// Sum of the accounts of the streams that `origin` sends, as `end` received them.
pub(super) fn account_of(end: &End, origin: u16) -> Account {
    let mut total = Account::default();
    for (_, account) in end.streams().accounts().filter(|(stream, _)| stream >> 8 == origin) {
        total.received += account.received;
        total.lost += account.lost;
        total.duplicated += account.duplicated;
        total.reordered += account.reordered;
        total.next += account.next;
    }
    total
}

/// All that one end knows.
pub(super) fn describe(end: &End) -> Json {
    let snapshot = Snapshot::of(end);
    let session = end.frontend().session();
    let agreed = session.map_or(0, Session::features);
    let corrupt = Corruption::ALL
        .iter()
        .zip(snapshot.received.corrupt)
        .map(|(kind, count)| (kind.name().to_owned(), Json::Count(count)))
        .collect();
    Json::object([
        ("name", Json::text(end.name())),
        ("socket", Json::text(end.frontend().config().socket.display().to_string())),
        ("mac", Json::text(end.mac().to_string())),
        ("link", Json::text(end.link().name())),
        ("sessions", Json::Count(end.frontend().sessions())),
        ("error", end.last_error().map_or(Json::Null, Json::text)),
        ("features", Json::text(features::names(VIRTIO, agreed))),
        ("features_offered", Json::Count(session.map_or(0, Session::offered))),
        ("protocol_features", Json::Count(session.map_or(0, Session::protocol))),
        ("pages_marked", end.frontend().log().map_or(Json::Null, |log| Json::Count(log.marked()))),
        ("sent", Json::Count(snapshot.sent.frames)),
        ("sent_bytes", Json::Count(snapshot.sent.bytes)),
        ("given_up", Json::Count(snapshot.sent.given_up)),
        ("received", Json::Count(snapshot.received.frames)),
        ("received_bytes", Json::Count(snapshot.received.bytes)),
        ("kicks", Json::Count(snapshot.sent.kicks + snapshot.received.kicks)),
        ("tries", Json::Count(snapshot.sent.tries)),
        ("full_tries", Json::Count(snapshot.sent.full_tries)),
        ("ring_full_share", Json::Number(ratio(snapshot.sent.full_tries, snapshot.sent.tries))),
        ("foreign", Json::Count(snapshot.received.foreign)),
        ("behind", Json::Count(snapshot.received.behind)),
        ("merged", Json::Count(snapshot.received.merged)),
        ("whole", Json::Count(snapshot.received.whole)),
        ("fragments", Json::Count(snapshot.received.fragments)),
        ("corrupt", Json::Object(corrupt)),
        ("violations", violations(end)),
        ("queues", Json::List(queues(end))),
        ("streams", Json::List(end.streams().accounts().map(|account| stream(end, account)).collect())),
        ("stopped_at", Json::List(end.stopped_at().iter().map(|&at| Json::Count(at.into())).collect())),
    ])
}

fn stream(end: &End, (number, account): (u16, Account)) -> Json {
    let (queues, moves) =
        end.streams().spread(number).fold((0, 0), |(queues, moves), flow| (queues | flow.queues, moves + flow.moves));
    let queues = (0..u128::BITS).filter(|queue| queues >> queue & 1 != 0);
    Json::object([
        ("queues", Json::List(queues.map(|queue| Json::Count(queue.into())).collect())),
        ("moves", Json::Count(moves)),
        ("stream", Json::Count(number.into())),
        ("received", Json::Count(account.received)),
        ("lost", Json::Count(account.lost)),
        ("duplicated", Json::Count(account.duplicated)),
        ("reordered", Json::Count(account.reordered)),
    ])
}

fn violations(end: &End) -> Json {
    let mut totals: Vec<(String, Json)> = Vec::new();
    let senders = end.senders().iter().map(|sender| ("transmitq", sender.violations()));
    let receivers = end.receivers().iter().map(|receiver| ("receiveq", receiver.violations()));
    for (index, (kind, found)) in senders.chain(receivers).enumerate() {
        let queue = index % end.senders().len().max(1);
        for (name, count) in found.entries().into_iter().filter(|(_, count)| *count != 0) {
            totals.push((format!("{kind}_{queue}_{name}"), Json::Count(count)));
        }
    }
    Json::Object(totals)
}

fn queues(end: &End) -> Vec<Json> {
    end.senders()
        .iter()
        .zip(end.receivers())
        .map(|(sender, receiver)| {
            let (sent, received) = (sender.counters(), receiver.counters());
            Json::object([
                ("sent", Json::Count(sent.frames)),
                ("received", Json::Count(received.frames)),
                ("in_ring", Json::Count(sender.queue().posted() as u64)),
                ("ring_full_share", Json::Number(ratio(sent.full_tries, sent.tries))),
                ("corrupt", Json::Count(received.corrupt_total())),
                ("foreign", Json::Count(received.foreign)),
                ("kicks", Json::Count(sent.kicks + received.kicks)),
            ])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_as_json() {
        let value = Json::object([
            ("a", Json::List(vec![Json::Count(1), Json::Number(0.5), Json::Null])),
            ("b \"x\"", Json::text("line\n")),
            ("c", Json::Number(f64::NAN)),
        ]);
        assert_eq!(value.to_string(), r#"{"a": [1, 0.5, null], "b \"x\"": "line\u000a", "c": null}"#);
    }
}
