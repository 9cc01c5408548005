//! `test`: surfaces that outside protocol suites need. It streams nothing, so its words are few.

use super::{Dialect, Door};
use crate::http::Method;
use crate::json::write_u64;
use crate::message::{Access, Command, Notice, Publication, Refusal, Reply, Request, Verb};

/// The dialect of the test surfaces.
pub struct Test;

const fn echo(method: Method) -> Door {
    Door::new(method, "/body", Access::Open, Verb::Echo)
}

impl Dialect for Test {
    const NAME: &'static str = "test";
    const DOORS: &'static [Door] = &[
        echo(Method::Get),
        echo(Method::Post),
        echo(Method::Put),
        echo(Method::Patch),
        echo(Method::Delete),
    ];

    fn command(verb: Verb, _: &str, _: &Request<'_>, _: u64) -> Result<Command, Refusal> {
        match verb {
            Verb::Echo => Ok(Command::Echo),
            _ => Err(Refusal::NotFound("the test surfaces only echo")),
        }
    }

    fn reply(_: &Reply<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{}");
    }

    fn refusal(refusal: &Refusal, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"status\":");
        write_u64(u64::from(refusal.status()), out);
        out.push(b'}');
    }

    fn event(publication: &Publication<'_>, out: &mut Vec<u8>) -> &'static str {
        out.extend_from_slice(publication.body);
        "message"
    }

    fn notice(_: &Notice<'_>, out: &mut Vec<u8>) -> &'static str {
        out.extend_from_slice(b"{}");
        "notice"
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::with_head;
    use super::*;

    #[test]
    fn every_method_echoes_and_nothing_else_is_understood() {
        with_head("GET /body HTTP/1.1\r\nHost: x\r\n\r\n", |head| {
            let request = Request { head, body: b"anything" };
            for door in Test::DOORS {
                assert_eq!(door.access, Access::Open);
                assert_eq!(Test::command(door.verb, "", &request, 0), Ok(Command::Echo));
            }
            assert!(Test::command(Verb::Topics, "", &request, 0).is_err());
        });
    }

    #[test]
    fn refusals_are_json() {
        let mut out = Vec::new();
        Test::refusal(&Refusal::Forbidden("no"), &mut out);
        assert_eq!(out, b"{\"status\":403}");
    }
}
