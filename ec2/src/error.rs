//! What a request is refused for, with EC2's codes.

use displaydoc::Display;
use instance::Code;

/// The result of an action.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request was not carried out. The code is what clients decide by.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// the request has no valid form: {0}
    Malformed(&'static str),
    /// the body has more than {0} bytes
    TooLarge(usize),
    /// the request names no action
    MissingAction,
    /// the action {0} is not available here
    InvalidAction(String),
    /// the version {0} is not available here
    NoSuchVersion(String),
    /// the request must contain the parameter {0}
    MissingParameter(String),
    /// the parameter {0} is not known here
    UnknownParameter(String),
    /// the value ({value}) of the parameter {name} is invalid: {why}
    InvalidValue {
        /// The parameter.
        name: String,
        /// What it was given; never user data or a key.
        value: String,
        /// What it may be.
        why: String,
    },
    /// {0}
    InvalidCombination(&'static str),
    /// {0} is not supported here
    Unsupported(String),
    /// the request would have succeeded, but the DryRun flag is set
    DryRun,

    /// the request is not signed
    Unsigned,
    /// the access key is not known here: see `ec2 env`
    UnknownKey,
    /// the request's signature is not the one that its content and the secret key give
    WrongSignature,
    /// the request was signed at {signed}, and here it is {now}
    Expired {
        /// The request's time.
        signed: String,
        /// This host's time.
        now: String,
    },

    /// the instance ID '{0}' does not exist
    NoInstance(String),
    /// invalid id: "{0}"
    MalformedInstance(String),
    /// the image id '[{0}]' does not exist
    NoImage(String),
    /// invalid id: "{0}"
    MalformedImage(String),
    /// an image of the name {0} exists already
    ImageName(String),
    /// the key pair '{0}' does not exist
    NoKeyPair(String),
    /// the key pair '{0}' already exists
    KeyPairExists(String),
    /// the key is not in a valid form: give a public key as OpenSSH writes it
    KeyFormat,
    /// the ID '{0}' is not valid
    InvalidId(String),
    /// the {kind} '{id}' does not exist
    NoPlace {
        /// `vpc`, `subnet`, `availability zone`…
        kind: &'static str,
        /// What was asked for.
        id: String,
    },
    /// the instance type {name} needs {memory} MiB of memory, and this host has {host} MiB
    Capacity {
        /// The instance type.
        name: String,
        /// What it needs.
        memory: u64,
        /// What there is.
        host: u64,
    },
    /// a security group of the name {0} exists already
    GroupExists(String),
    /// the security group {0} is in use: its rules are applied when an instance is launched
    GroupInUse(String),
    /// the security group has a rule for {0} already
    RuleExists(String),
    /// the security group {0} has no such rule
    NoRule(String),
    /// the client token was used before with other parameters
    TokenMismatch,
    /// the token is not one that this endpoint has given
    InvalidNextToken,
    /// the instance '{id}' may not be {step}: modify its '{attribute}' attribute and try again
    Protected {
        /// The instance.
        id: String,
        /// `stopped` or `terminated`.
        step: &'static str,
        /// What forbids it.
        attribute: &'static str,
    },
    /// {0}
    Service(#[from] instance::Error),
}

impl Error {
    /// A value that a parameter cannot have.
    pub fn value(name: impl Into<String>, value: impl Into<String>, why: impl Into<String>) -> Error {
        Error::InvalidValue {
            name: name.into(),
            value: value.into(),
            why: why.into(),
        }
    }

    /// EC2's code.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Malformed(_) => "MalformedQueryString",
            Error::TooLarge(_) => "RequestEntityTooLarge",
            Error::MissingAction => "MissingAction",
            Error::InvalidAction(_) => "InvalidAction",
            Error::NoSuchVersion(_) => "NoSuchVersion",
            Error::MissingParameter(_) => "MissingParameter",
            Error::UnknownParameter(_) => "UnknownParameter",
            Error::InvalidValue { .. } => "InvalidParameterValue",
            Error::InvalidCombination(_) => "InvalidParameterCombination",
            Error::Unsupported(_) => "UnsupportedOperation",
            Error::DryRun => "DryRunOperation",
            Error::Unsigned => "MissingAuthenticationToken",
            Error::UnknownKey => "AuthFailure",
            Error::WrongSignature => "SignatureDoesNotMatch",
            Error::Expired { .. } => "RequestExpired",
            Error::NoInstance(_) => "InvalidInstanceID.NotFound",
            Error::MalformedInstance(_) => "InvalidInstanceID.Malformed",
            Error::NoImage(_) => "InvalidAMIID.NotFound",
            Error::MalformedImage(_) => "InvalidAMIID.Malformed",
            Error::ImageName(_) => "InvalidAMIName.Duplicate",
            Error::NoKeyPair(_) => "InvalidKeyPair.NotFound",
            Error::KeyPairExists(_) => "InvalidKeyPair.Duplicate",
            Error::KeyFormat => "InvalidKey.Format",
            Error::InvalidId(_) => "InvalidID",
            Error::NoPlace { kind: "vpc", .. } => "InvalidVpcID.NotFound",
            Error::NoPlace { kind: "subnet", .. } => "InvalidSubnetID.NotFound",
            Error::NoPlace {
                kind: "security group",
                ..
            } => "InvalidGroup.NotFound",
            Error::NoPlace { .. } => "InvalidParameterValue",
            Error::Capacity { .. } => "InsufficientInstanceCapacity",
            Error::GroupExists(_) => "InvalidGroup.Duplicate",
            Error::GroupInUse(_) => "DependencyViolation",
            Error::RuleExists(_) => "InvalidPermission.Duplicate",
            Error::NoRule(_) => "InvalidPermission.NotFound",
            Error::TokenMismatch => "IdempotentParameterMismatch",
            Error::InvalidNextToken => "InvalidNextToken",
            Error::Protected { .. } => "OperationNotPermitted",
            Error::Service(error) => error.code().as_str(),
        }
    }

    /// The status of the HTTP response.
    pub fn status(&self) -> u16 {
        match self {
            Error::TooLarge(_) => 413,
            Error::UnknownKey => 401,
            Error::Unsigned | Error::WrongSignature => 403,
            Error::DryRun => 412,
            Error::Capacity { .. } => 500,
            Error::Service(error) => match error.code() {
                Code::Internal | Code::Agent | Code::NoSpace => 500,
                Code::Busy | Code::Unresponsive | Code::TimedOut => 503,
                Code::NotPermitted => 403,
                _ => 400,
            },
            _ => 400,
        }
    }
}
