//! What is published: a telemetry reading that carries who sent it, its number and when it was due.
//!
//! The server passes a reading's fields through, so whoever receives one can tell what is missing, repeated or
//! out of order, and how late it is.

use protocol::json::{write_string, write_u64};

/// The marks of one publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Which publishing connection sent it, from 0. Order is promised within one source only.
    pub source: u32,
    /// Its number within the source, from 0, without holes.
    pub seq: u64,
    /// When it was due, ns on the machine's monotonic clock.
    pub due_ns: u64,
}

/// Appends one row for the ingest endpoint, without a line end.
pub fn write_row(well: &str, marks: Marks, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"well_id\":");
    write_string(well, out);
    out.push(b',');
    write_fields(marks, out);
    out.push(b'}');
}

/// Appends the fields of a reading, without braces: nine measurements, and the marks.
pub fn write_fields(marks: Marks, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"\"flow_rate\":1000.5,\"pip\":2000.0,\"motor_current\":50.0,\"motor_temp\":85.0,\
          \"vibration\":3.2,\"vsd_frequency\":60.0,\"flow_variance\":15.0,\"torque\":120.5,\"gor\":150.0,",
    );
    for (name, number) in [(SOURCE, u64::from(marks.source)), (SEQ, marks.seq), (DUE, marks.due_ns)] {
        out.extend_from_slice(name);
        write_u64(number, out);
        out.push(b',');
    }
    out.pop();
}

/// The marks in the data of an event; none if it is not a publication of ours.
pub fn find(data: &[u8]) -> Option<Marks> {
    Some(Marks {
        seq: number(data, SEQ)?,
        due_ns: number(data, DUE)?,
        source: u32::try_from(number(data, SOURCE)?).ok()?,
    })
}

const SOURCE: &[u8] = b"\"src\":";
const SEQ: &[u8] = b"\"seq\":";
const DUE: &[u8] = b"\"ts_ns\":";

/// The number after the last `name`. Searched from the end, where the marks are.
fn number(data: &[u8], name: &[u8]) -> Option<u64> {
    let at = data.windows(name.len()).rposition(|window| window == name)?;
    let digits = &data[at + name.len()..];
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&digits[..count]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_is_json_with_its_well() {
        let mut row = Vec::new();
        let marks = Marks { source: 2, seq: 7, due_ns: 99 };
        write_row("WELL-\"1", marks, &mut row);
        let row: serde_json::Value = serde_json::from_slice(&row).unwrap();
        assert_eq!(row["well_id"], "WELL-\"1");
        assert_eq!((&row["src"], &row["seq"], &row["ts_ns"]), (&2.into(), &7.into(), &99.into()));
    }

    #[test]
    fn other_events_have_no_marks() {
        for data in [
            "",
            "{}",
            "{\"seq\":1,\"ts_ns\":2}",
            "{\"src\":1,\"seq\":1}",
            "{\"src\":1,\"seq\":,\"ts_ns\":2}",
            "{\"src\":1,\"seq\":-1,\"ts_ns\":2}",
            "{\"src\":4294967296,\"seq\":1,\"ts_ns\":2}",
            "{\"src\":1,\"seq\":18446744073709551616,\"ts_ns\":2}",
        ] {
            assert_eq!(find(data.as_bytes()), None, "{data}");
        }
    }

    proptest! {
        #[test]
        fn marks_come_back_from_wherever_they_are_put(
            source: u32, seq: u64, due_ns: u64,
            before in "[a-z{}:,\"]{0,40}", after in "[a-z{}:,\"]{0,40}",
        ) {
            let marks = Marks { source, seq, due_ns };
            let mut data = before.into_bytes();
            data.extend_from_slice(b"{\"data\":{");
            write_fields(marks, &mut data);
            data.extend_from_slice(b"}}");
            data.extend_from_slice(after.as_bytes());
            prop_assert_eq!(find(&data), Some(marks));
        }
    }
}
