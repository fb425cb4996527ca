//! The nearest known name.

/// The candidate that `text` most likely means, if any is near.
pub fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |candidate: &str| {
        // Separators are what people forget most: batchsize, batch-size, batch_size.
        let squash = |text: &str| text.replace(['_', '-'], "").to_lowercase();
        strsim::jaro_winkler(&squash(text), &squash(candidate))
    };
    candidates
        .into_iter()
        .map(|candidate| (score(candidate), candidate))
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelling_finds_its_key_and_nonsense_finds_none() {
        let keys = ["relay.batch_size", "relay.buffer_bytes_max", "ops.listen"];
        assert_eq!(nearest("relay.batchsize", keys), Some("relay.batch_size"));
        assert_eq!(nearest("relay.batch-size", keys), Some("relay.batch_size"));
        assert_eq!(nearest("opps.listen", keys), Some("ops.listen"));
        assert_eq!(nearest("zzz", keys), None);
    }
}
