//! The kinds of brokers that this program knows: one line each.

use posthaste_bus_kit::BusKind;
use posthaste_bus_kit::config::Section;

/// All kinds, in the order of the reference.
pub(crate) const KINDS: &[BusKind] = &[
    posthaste_ndjson::STDOUT,
    posthaste_ndjson::FILE,
    #[cfg(feature = "nats")]
    posthaste_nats::NATS,
    #[cfg(feature = "webhook")]
    posthaste_webhook::WEBHOOK,
];

/// What `type` can be.
pub(crate) const NAMES: [&str; KINDS.len()] = {
    let mut names = [""; KINDS.len()];
    let mut at = 0;
    while at < KINDS.len() {
        names[at] = KINDS[at].name();
        at += 1;
    }
    names
};

/// What each kind adds to the configuration.
pub(crate) const SECTIONS: [Section; KINDS.len()] = {
    let mut sections = [KINDS[0].section(); KINDS.len()];
    let mut at = 0;
    while at < KINDS.len() {
        sections[at] = KINDS[at].section();
        at += 1;
    }
    sections
};

/// The kind called `name`.
pub(crate) fn named(name: &str) -> Option<&'static BusKind> {
    KINDS.iter().find(|kind| kind.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_kinds_have_one_name() {
        for (at, kind) in KINDS.iter().enumerate() {
            assert!(!NAMES[..at].contains(&kind.name()), "{kind:?}");
        }
    }
}
