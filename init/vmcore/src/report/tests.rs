//! Tests of [`super`].

use super::*;
use crate::kernel::info::Origin;

#[test]
fn outcomes_survive_an_exit_code() {
    for outcome in [Outcome::Complete, Outcome::Incomplete, Outcome::LogOnly, Outcome::Failed] {
        assert_eq!(Outcome::from_exit_code(i32::from(outcome.exit_code())), Some(outcome));
    }
    assert_eq!(Outcome::from_exit_code(101), None);
}

#[test]
fn hostile_text_stays_inside_its_json_string() {
    let mut summary = Summary { host: Some("a\"\n\u{1b}".into()), ..Summary::default() };
    summary.degradations.push(Degradation::Vmcoreinfo(Origin::Nowhere));
    let back: serde_json::Value = serde_json::from_str(&summary.to_json()).unwrap();
    assert_eq!(back["host"], "a\"\n\u{1b}");
    assert_eq!(back["degradations"][0]["step"], "vmcoreinfo");
    assert_eq!(back["degradations"][0]["source"], "nowhere");
    assert_eq!(back["outcome"], "failed");
}
