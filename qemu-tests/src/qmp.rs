//! QEMU's machine protocol: requests to a running machine, and the events that tell how it ended.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long QEMU may take to answer: it does so between two turns of its main loop.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to one machine.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    answers: Receiver<Value>,
    events: Receiver<Value>,
}

/// How a guest came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest asked for a reset; with `-no-reboot` that ends QEMU.
    Reset,
    /// The guest switched itself off.
    PowerOff,
    /// The hardware watchdog ran out.
    Watchdog,
    /// The harness cut the power, or QEMU ended without a word.
    Cut,
}

impl Ending {
    /// Tells it from the events of a machine that is gone (`SHUTDOWN` and `WATCHDOG` of QEMU's
    /// qapi/run-state.json).
    #[must_use]
    pub fn of(events: &[Value]) -> Self {
        let named = |name: &str| events.iter().find(|event| event.get("event").is_some_and(|it| it == name));
        // A watchdog resets by the guest's own road: its SHUTDOWN says guest-reset, too.
        if named("WATCHDOG").is_some() {
            return Self::Watchdog;
        }
        let reason = named("SHUTDOWN").and_then(|event| event.pointer("/data/reason")?.as_str());
        match reason {
            Some("guest-reset") => Self::Reset,
            Some("guest-shutdown") => Self::PowerOff,
            _ => Self::Cut,
        }
    }
}

impl Qmp {
    /// Connects to the socket of a machine that is just starting, as long as it is `alive`.
    pub fn connect(socket: &Path, mut alive: impl FnMut() -> bool) -> Result<Self> {
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if started.elapsed() > ANSWER || !alive() => {
                    return Err(error).with_context(|| format!("connecting to {}", socket.display()));
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let (answer, answers) = channel();
        let (event, events) = channel();
        let lines = BufReader::new(stream.try_clone().context("a second descriptor of the socket")?).lines();
        thread::spawn(move || {
            // Ends with the connection, and drops the senders: that is how `all_events` knows.
            for line in lines.map_while(std::result::Result::ok) {
                let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
                // A receiver that is gone needs no messages.
                let _ =
                    if message.get("event").is_some() { event.send(message) } else { answer.send(message) };
            }
        });
        let mut qmp = Self { stream, answers, events };
        qmp.answer().context("the greeting")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command to its answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream
            .write_all(format!("{request}\n").as_bytes())
            .with_context(|| format!("asking for {command}"))?;
        let answer = self.answer().with_context(|| format!("{command} {arguments}"))?;
        match answer.get("return") {
            Some(value) => Ok(value.clone()),
            None => bail!("{command} {arguments}: {answer}"),
        }
    }

    /// All events up to the end of the machine, for which it waits.
    #[must_use]
    pub fn all_events(self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Ok(event) = self.events.recv_timeout(ANSWER) {
            events.push(event);
        }
        events
    }

    fn answer(&self) -> Result<Value> {
        self.answers.recv_timeout(ANSWER).context("QEMU does not answer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_apart() {
        let shutdown = |reason: &str| json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": reason}});
        let watchdog = json!({"event": "WATCHDOG", "data": {"action": "reset"}});
        assert_eq!(Ending::of(&[shutdown("guest-reset")]), Ending::Reset);
        assert_eq!(Ending::of(&[shutdown("guest-shutdown")]), Ending::PowerOff);
        assert_eq!(Ending::of(&[watchdog, shutdown("guest-reset")]), Ending::Watchdog);
        assert_eq!(Ending::of(&[json!({"event": "RTC_CHANGE"})]), Ending::Cut);
    }
}
