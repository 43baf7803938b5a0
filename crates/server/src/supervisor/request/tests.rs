//! Tests of the preparation of requests.
