//! Judges a text in the Prometheus exposition format, version 0.0.4.

use std::collections::{BTreeMap, BTreeSet};

/// One line: labels (with `le` among them) and value.
type Sample = (BTreeMap<String, String>, f64);

/// A family of metrics.
#[derive(Clone, Debug, Default)]
pub struct Family {
    /// `counter`, `gauge`, `histogram`, …
    pub kind: String,
    /// Samples by name, which in a histogram has a suffix, and labels.
    pub samples: BTreeMap<String, Vec<Sample>>,
}

/// Takes a text apart.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<BTreeMap<String, Family>, String> {
    if !text.ends_with('\n') {
        return Err("the last line does not end".into());
    }
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        let wrong = |what: &str| Err(format!("{what}: {line:?}"));
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap_or((help, ""));
            if text.is_empty() || !helped.insert(name.to_owned()) {
                return wrong("no help, or for the second time");
            }
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = kind.split_once(' ') else { return wrong("no type") };
            let known = ["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind);
            let fresh = Family { kind: kind.into(), ..Family::default() };
            if !known || !is_name(name) || families.insert(name.into(), fresh).is_some() {
                return wrong("an unknown type, or for the second time");
            }
            current = name.into();
        } else if line.starts_with('#') || line.is_empty() {
            return wrong("neither help, type nor sample");
        } else {
            let (name, labels, value) = sample(line)?;
            let Some(family) = families.get_mut(&current) else { return wrong("a sample before its type") };
            let suffix = name.strip_prefix(&*current);
            let fits = match &*family.kind {
                "histogram" => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
                _ => suffix == Some(""),
            };
            let samples = family.samples.entry(name).or_default();
            if !fits || samples.iter().any(|(other, _)| *other == labels) {
                return wrong("in another family, or for the second time");
            }
            samples.push((labels, value));
        }
    }
    for (name, family) in &families {
        check(name, family).map_err(|what| format!("{name}: {what}"))?;
        if !helped.contains(name) {
            return Err(format!("{name} has no help"));
        }
    }
    Ok(families)
}

fn sample(line: &str) -> Result<(String, BTreeMap<String, String>, f64), String> {
    let wrong = |what: &str| format!("{what}: {line:?}");
    let end = line.find(['{', ' ']).ok_or_else(|| wrong("no value"))?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name) {
        return Err(wrong("no name"));
    }
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        let (inner, after) = inner.split_once('}').ok_or_else(|| wrong("labels without an end"))?;
        for label in inner.split(',') {
            let (name, value) = label.split_once('=').ok_or_else(|| wrong("a label without a value"))?;
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            let value =
                value.filter(|value| !value.contains(['"', '\\'])).ok_or_else(|| wrong("a label's value"))?;
            if !is_name(name) || labels.insert(name.into(), value.into()).is_some() {
                return Err(wrong("a label twice, or none"));
            }
        }
        rest = after;
    }
    let value = rest.strip_prefix(' ').and_then(|value| value.parse().ok());
    Ok((name.into(), labels, value.ok_or_else(|| wrong("no value"))?))
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn check(name: &str, family: &Family) -> Result<(), String> {
    let all = || family.samples.values().flatten();
    if all().count() == 0 {
        return Err("no sample".into());
    }
    if family.kind == "counter" && (!name.ends_with("_total") || all().any(|(_, value)| *value < 0.0)) {
        return Err("a counter ends in _total and is never negative".into());
    }
    if family.kind != "histogram" {
        return Ok(());
    }
    let of = |suffix: &str| family.samples.get(&format!("{name}{suffix}")).cloned().unwrap_or_default();
    let (buckets, counts, sums) = (of("_bucket"), of("_count"), of("_sum"));
    let bounds: Vec<f64> = buckets.iter().filter_map(|(labels, _)| labels.get("le")?.parse().ok()).collect();
    let grows = bounds.is_sorted_by(|a, b| a < b) && buckets.is_sorted_by(|(_, a), (_, b)| a <= b);
    match (buckets.last(), &counts[..], &sums[..]) {
        (Some((_, all)), [(_, count)], [_])
            if bounds.len() == buckets.len()
                && grows
                && bounds.last() == Some(&f64::INFINITY)
                && all == count =>
        {
            Ok(())
        }
        _ => Err("buckets grow up to +Inf, which is the count; there is a sum".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP a_total Counts.\n# TYPE a_total counter\na_total 5\n# HELP b B.\n# TYPE b gauge\n\
                        b{x=\"1\"} 1\nb{x=\"2\"} -0.5\n# HELP c C.\n# TYPE c histogram\nc_bucket{le=\"0.1\"} 1\n\
                        c_bucket{le=\"+Inf\"} 3\nc_sum 1.5\nc_count 3\n";

    #[test]
    fn a_good_text_is_taken() {
        let families = parse(GOOD).unwrap();
        assert_eq!(families.keys().collect::<Vec<_>>(), ["a_total", "b", "c"]);
        assert_eq!(families["b"].samples["b"][1].1, -0.5);
    }

    #[test]
    fn a_bad_one_is_not() {
        for (from, to) in [
            ("a_total 5\n", ""),
            ("a_total 5\n", "a_total 5\na_total 6\n"),
            ("a_total 5\n", "a_total -5\n"),
            ("a_total 5\n", "a_total five\n"),
            ("a_total 5\n", "a_total\n"),
            ("a_total 5\n", "\na_total 5\n"),
            ("a_total", "a"),
            ("# HELP b B.\n", ""),
            ("# HELP b B.\n", "# HELP b\n"),
            ("# TYPE b gauge\n", ""),
            ("gauge", "gouge"),
            ("x=\"2\"", "x=\"1\""),
            ("x=\"2\"", "x=2"),
            ("x=\"2\"", "x=\"2"),
            ("+Inf\"} 3", "+Inf\"} 2"),
            ("+Inf", "0.2"),
            ("+Inf", "0.05"),
            ("le=\"0.1\"} 1", "le=\"0.1\"} 4"),
            ("c_sum 1.5\n", ""),
            ("c_count 3\n", "c_count 3"),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert!(parse(&GOOD.replace(from, to)).is_err(), "{from:?} -> {to:?}");
        }
    }
}
