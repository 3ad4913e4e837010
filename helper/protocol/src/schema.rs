//! JSON Schemas (draft 2020-12) of what programs read: for types whose JSON is not their derived one. Only tests
//! and the files that they write need them, so this is behind the feature `schema`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::problem::Code;

/// RFC 3339, in UTC.
#[derive(Debug)]
pub struct Moment;

impl JsonSchema for Moment {
    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "description": "RFC 3339, in UTC." })
    }
}

impl JsonSchema for Code {
    fn schema_name() -> Cow<'static, str> {
        "Code".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^E[0-9]{3,5}$", "description": "A number of the catalogue of errors." })
    }
}
