"""CORS rules, preflights and the headers of answers."""

from __future__ import annotations

import pytest

from freehold.gateway.wire.cors import VARY, CorsRule, for_answer, parse_cors, preflight
from freehold.gateway.wire.errors import S3Error
from tests.gateway import samples
from tests.gateway.samples import element

RULES = parse_cors(samples.CORS)


def test_rules_are_read() -> None:
    assert (
        CorsRule(
            origins=("https://*.example.com",),
            methods=("PUT", "GET"),
            headers=("x-amz-*", "Content-Type"),
            exposed=("ETag",),
            max_age=3000,
        ),
        CorsRule(id="all", origins=("*",), methods=("GET",)),
    ) == RULES


def rule(*inner: str) -> bytes:
    return element("CORSConfiguration", element("CORSRule", *inner))


ORIGIN, METHOD = "<AllowedOrigin>*</AllowedOrigin>", "<AllowedMethod>GET</AllowedMethod>"
BAD = {
    "no rule": (b"<CORSConfiguration/>", "MalformedXML"),
    "101 rules": (
        element("CORSConfiguration", *[f"<CORSRule>{ORIGIN}{METHOD}</CORSRule>"] * 101),
        "MalformedXML",
    ),
    "no origin": (rule(METHOD), "MalformedXML"),
    "no method": (rule(ORIGIN), "MalformedXML"),
    "an odd method": (rule(ORIGIN, "<AllowedMethod>PATCH</AllowedMethod>"), "InvalidRequest"),
    "a small method": (rule(ORIGIN, "<AllowedMethod>get</AllowedMethod>"), "InvalidRequest"),
    "two wildcards": (rule("<AllowedOrigin>*.*</AllowedOrigin>", METHOD), "InvalidRequest"),
    "two wildcards in a header": (rule(ORIGIN, METHOD, "<AllowedHeader>**</AllowedHeader>"), "InvalidRequest"),
    "an empty origin": (rule("<AllowedOrigin/>", METHOD), "MalformedXML"),
    "a line break": (rule("<AllowedOrigin>a&#10;b</AllowedOrigin>", METHOD), "MalformedXML"),
    "a wildcard that is exposed": (rule(ORIGIN, METHOD, "<ExposeHeader>x-*</ExposeHeader>"), "InvalidRequest"),
    "a line break that is exposed": (rule(ORIGIN, METHOD, "<ExposeHeader>a&#13;b</ExposeHeader>"), "MalformedXML"),
    "a negative age": (rule(ORIGIN, METHOD, "<MaxAgeSeconds>-1</MaxAgeSeconds>"), "MalformedXML"),
    "what is not known": (rule(ORIGIN, METHOD, "<Other/>"), "MalformedXML"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_what_is_no_rule(name: str) -> None:
    data, code = BAD[name]
    with pytest.raises(S3Error) as caught:
        parse_cors(data)
    assert caught.value.code == code


def test_a_preflight_names_what_is_allowed() -> None:
    assert preflight(RULES, "https://a.example.com", "PUT", "X-Amz-Date, content-type") == {
        "Access-Control-Allow-Origin": "https://a.example.com",
        "Access-Control-Allow-Methods": "PUT, GET",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Headers": "x-amz-date, content-type",
        "Access-Control-Expose-Headers": "ETag",
        "Access-Control-Max-Age": "3000",
        "Vary": VARY,
    }
    assert preflight(RULES, "http://anyone", "GET", "")["Access-Control-Allow-Origin"] == "*"


REFUSED = [
    ("https://example.com", "PUT", ""),
    ("https://a.example.com.evil", "PUT", ""),
    ("http://a.example.com", "PUT", ""),
    ("https://a.example.com", "DELETE", ""),
    ("https://a.example.com", "PUT", "authorization"),
    ("https://a.example.com", "PUT", "x-amz-date, authorization"),
    ("http://anyone", "GET", "x-amz-date"),
]


@pytest.mark.parametrize(("origin", "method", "headers"), REFUSED)
def test_a_preflight_that_no_rule_allows(origin: str, method: str, headers: str) -> None:
    with pytest.raises(S3Error) as caught:
        preflight(RULES, origin, method, headers)
    assert (caught.value.code, caught.value.status) == ("AccessForbidden", 403)


def test_an_answer_has_headers_where_a_rule_fits() -> None:
    assert for_answer(RULES, "https://a.example.com", "PUT")["Access-Control-Allow-Origin"] == "https://a.example.com"
    anyone = for_answer(RULES, "http://anyone", "GET")
    assert anyone["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in anyone
    assert for_answer(RULES, "http://anyone", "PUT") == {}
    assert for_answer((), "http://anyone", "GET") == {}
