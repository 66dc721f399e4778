//! From a request to its answer: the signature, the action, and the XML around what it returns.

use std::sync::Arc;

use instance::service::Service;
use uuid::Uuid;

use crate::actions;
use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::query::Params;
use crate::sigv4::Signed;
use crate::xml::{self, Element, node, text};
use crate::{ledger::Ledger, time};

const EC2_VERSION: &str = "2016-11-15";
const EC2_NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";
const STS_VERSION: &str = "2011-06-15";
const STS_NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// The header by which the SDKs name a request, the same for each attempt.
const INVOCATION: &str = "amz-sdk-invocation-id";

/// The endpoint: it keeps nothing but what is in the stores of `service`.
#[derive(Debug)]
pub struct Api {
    pub(crate) service: Service,
    pub(crate) ledger: Ledger,
    pub(crate) credentials: Credentials,
    /// As in `127.0.0.1:4566`.
    pub(crate) endpoint: String,
}

/// A request.
#[derive(Debug)]
pub struct Call {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// What follows the question mark.
    pub query: String,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The request's id.
    pub request_id: String,
    /// XML.
    pub body: Vec<u8>,
}

/// The two services of the endpoint; their answers differ in form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Ec2,
    Sts,
}

impl Api {
    /// The endpoint of what `service` keeps.
    pub fn new(service: Service, credentials: Credentials, endpoint: String) -> Arc<Api> {
        let ledger = Ledger::new(&service);
        Arc::new(Api {
            service,
            ledger,
            credentials,
            endpoint,
        })
    }

    /// Goes on with what a program that was killed has left unfinished.
    ///
    /// # Errors
    /// When it cannot be known what that is.
    pub fn resume(self: &Arc<Api>) -> Result<()> {
        actions::finish_terminations(self)
    }

    /// Answers a request.
    pub fn answer(self: &Arc<Api>, call: &Call) -> Reply {
        let request_id = Uuid::new_v4().to_string();
        let mut family = Family::Ec2;
        let done = self.carry_out(call, &mut family);
        match done {
            Ok((action, elements)) => Reply {
                status: 200,
                body: wrap(family, &action, &request_id, elements),
                request_id,
            },
            Err(error) => {
                tracing::debug!(%request_id, code = error.code(), "refused");
                refusal(family, request_id, &error)
            }
        }
    }

    fn carry_out(self: &Arc<Api>, call: &Call, family: &mut Family) -> Result<(String, Vec<Element>)> {
        let signed = Signed {
            method: &call.method,
            path: &call.path,
            query: &call.query,
            headers: &call.headers,
            body: &call.body,
        };
        signed.verify(&self.credentials, time::now())?;
        let mut params = Params::parse(call.query.as_bytes(), &call.body)?;
        params.invocation = signed.header(INVOCATION);
        let action = params.text("Action").ok_or(Error::MissingAction)?.to_owned();
        let version = params.text("Version").unwrap_or(EC2_VERSION);
        *family = match version {
            EC2_VERSION => Family::Ec2,
            STS_VERSION => Family::Sts,
            other => return Err(Error::NoSuchVersion(other.to_owned())),
        };
        let table = match family {
            Family::Ec2 => actions::EC2,
            Family::Sts => actions::STS,
        };
        let known = table.iter().find(|(name, _)| *name == action);
        let (_, carry_out) = known.ok_or_else(|| Error::InvalidAction(action.clone()))?;
        let elements = carry_out(self, &params)?;
        Ok((action, elements))
    }
}

impl Reply {
    /// The answer to a request that could not be read.
    pub fn refused(error: &Error) -> Reply {
        refusal(Family::Ec2, Uuid::new_v4().to_string(), error)
    }

    /// The answer when its thread has failed.
    pub fn internal() -> Reply {
        let request_id = Uuid::new_v4().to_string();
        let body = problem(
            Family::Ec2,
            &request_id,
            "InternalError",
            "an internal error has occurred",
        );
        Reply {
            status: 500,
            request_id,
            body,
        }
    }
}

fn refusal(family: Family, request_id: String, error: &Error) -> Reply {
    Reply {
        status: error.status(),
        body: problem(family, &request_id, error.code(), &error.to_string()),
        request_id,
    }
}

fn wrap(family: Family, action: &str, request_id: &str, elements: Vec<Element>) -> Vec<u8> {
    let root = format!("{action}Response");
    match family {
        Family::Ec2 => {
            let mut all = vec![text("requestId", request_id)];
            all.extend(elements);
            xml::document(&root, Some(EC2_NAMESPACE), &all)
        }
        Family::Sts => {
            let mut all = elements;
            all.push(node("ResponseMetadata", [text("RequestId", request_id)]));
            xml::document(&root, Some(STS_NAMESPACE), &all)
        }
    }
}

fn problem(family: Family, request_id: &str, code: &str, message: &str) -> Vec<u8> {
    match family {
        Family::Ec2 => {
            let error = node("Error", [text("Code", code), text("Message", message)]);
            let all = [node("Errors", [error]), text("RequestID", request_id)];
            xml::document("Response", None, &all)
        }
        Family::Sts => {
            let error = node(
                "Error",
                [
                    text("Type", "Sender"),
                    text("Code", code),
                    text("Message", message),
                ],
            );
            let all = [error, text("RequestId", request_id)];
            xml::document("ErrorResponse", Some(STS_NAMESPACE), &all)
        }
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
