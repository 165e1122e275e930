"""What passes a test in the sandbox, and what is whose mistake."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit import sandbox
from rftkit.errors import UserError
from rftkit.sandbox.inside.encode import encode

ADD = "def f(a, b): return a + b"
SLOW = 20.0  # seconds for a program that is quick unless this machine is very busy


@pytest.fixture(scope="module", autouse=True)
def _closed():
    yield
    sandbox.close()


def returns(expression: str, expect: str, code: str = "") -> bool:
    result = sandbox.run_tests(code, [{"call": expression, "expect": expect}], SLOW)
    assert result.error is None
    return result.passed == 1


def test_counts_passed_tests():
    tests = [
        {"call": "f(1, 2)", "expect": "3"},
        {"call": "f('a', 'b')", "expect": "'ab'"},
        {"call": "f([1], [2])", "expect": "[2, 1]"},
    ]
    assert sandbox.run_tests(ADD, tests) == sandbox.Result(passed=2, total=3, error=None)


def test_an_exception_fails_its_test_only_and_is_named():
    tests = [{"call": call, "expect": "1"} for call in ("g(1)", "1 // 0", "1")]
    result = sandbox.run_tests("def g(x): return x", tests)
    assert (result.passed, result.total) == (2, 3)
    assert result.error == "tests[1]: ZeroDivisionError: integer division or modulo by zero"


def test_values_before_a_timeout_count():
    tests = [{"call": call, "expect": "1"} for call in ("f(1)", "f(0)", "f(1)")]
    code = "def f(x):\n    while not x: pass\n    return x"
    start = time.monotonic()
    result = sandbox.run_tests(code, tests, timeout=1.0)
    assert result == sandbox.Result(passed=1, total=3, error="it ran longer than 1 s")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("def f(:", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("x = 1 << 20\nwhile True: x = [x] * 10 ** 9", "MemoryError"),
        ("#" * (1 << 20 | 1), "longer than 1048576 characters"),
    ],
)
def test_a_program_that_fails_says_why(code, error):
    result = sandbox.run_tests(code, [{"call": "1", "expect": "1"}], SLOW)
    assert (result.passed, result.total) == (0, 1)
    assert error in result.error
    assert sandbox.run_tests(code, [], SLOW).total == 0


@pytest.mark.parametrize(
    ("value", "expect"),
    [
        ("None", "None"),
        ("...", "..."),
        ("3 > 2", "True"),
        ("2 ** 99999", hex(2**99999)),
        ("-5", "-5"),
        ("0.1 + 0.2", "0.30000000000000004"),
        ("-0.0", "0.0"),
        ("float('inf')", "1e999"),
        ("complex(1, -2)", "1-2j"),
        ("'é\\n\\ud800'", "'é\\n\\ud800'"),
        ("bytes([0, 255])", r"b'\x00\xff'"),
        ("(1, [2, (3,)])", "(1, [2, (3,)])"),
        ("set()", "set()"),
        ("{3, 1, 'x'}", "{'x', 1, 3}"),
        ("{'b': {2: None}, 'a': ()}", "{'a': (), 'b': {2: None}}"),
        ("list(range(9999))", str(list(range(9999)))),
    ],
)
def test_equal_literals_pass(value, expect):
    assert returns(value, expect)


@pytest.mark.parametrize(
    ("value", "expect"),
    [
        ("True", "1"),
        ("1", "True"),
        ("1.0", "1"),
        ("1", "1.0"),
        ("11", "b''"),
        ("(1, 2)", "[1, 2]"),
        ("[True]", "[1]"),
        ("{1.0}", "{1}"),
        ("{True: 2}", "{1: 2}"),
        ("'1'", "1"),
        ("b'a'", "'a'"),
        ("'a'", "'A'"),
        ("['a,b']", "['a', 'b']"),
        ("[[], []]", "[[[]]]"),
        ("float('nan')", "1e999"),
        ("{}", "set()"),
    ],
)
def test_other_types_and_values_fail(value, expect):
    assert not returns(value, expect)


@pytest.mark.parametrize(
    "value",
    [
        "type('I', (int,), {})(3)",
        "type('E', (), {'__eq__': lambda *a: True, '__repr__': lambda *a: '3'})()",
        "__import__('enum').IntEnum('E', {'x': 3}).x",
        "__import__('collections').Counter()",
        "frozenset()",
        "iter([])",
        "[[[object()]]]",
    ],
)
def test_what_is_no_literal_fails_with_a_reason(value):
    result = sandbox.run_tests("", [{"call": value, "expect": "3"}])
    assert result.passed == 0
    assert "not a Python literal" in result.error


_KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_LITERALS = st.recursive(
    _KEYS | st.binary() | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.sets(_KEYS, max_size=4)
        | st.dictionaries(_KEYS, inner, max_size=4)
    ),
    max_leaves=8,
)


def same(a: object, b: object) -> bool:
    """What `encode` must agree with: equal in value and type, all the way down."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, list | tuple):
        return all(map(same, a, b))
    if isinstance(a, set):
        return all(any(same(x, y) for y in b) for x in a)
    if isinstance(a, dict):
        return all(any(same(x, y) and same(a[x], b[y]) for y in b) for x in a)
    return True


@settings(max_examples=50)
@given(_LITERALS, _LITERALS)
def test_encoded_texts_are_equal_exactly_where_values_and_types_are(a, b):
    assert encode(a) == encode(a)
    assert (encode(a) == encode(b)) == same(a, b)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("f(1)", r"tests\[1\] must be an object"),
        ({"expect": "1"}, r"tests\[1\] needs a non-empty string field 'call'"),
        ({"call": " ", "expect": "1"}, r"tests\[1\] needs a non-empty string field 'call'"),
        ({"call": "f(1)"}, r"tests\[1\] needs a non-empty string field 'expect'"),
        ({"call": "f(1)", "expect": 1}, r"tests\[1\] needs a non-empty string field 'expect'"),
        ({"call": "f(1", "expect": "1"}, r"tests\[1\]: 'call' is not a Python expression: 'f\(1'"),
        ({"call": "x = 1", "expect": "1"}, r"tests\[1\]: 'call' is not a Python expression"),
        ({"call": "f(1)", "expect": "f(2)"}, r"tests\[1\]: 'expect' is not a Python literal"),
        ({"call": "f(1)", "expect": "nan"}, r"tests\[1\]: 'expect' is not a Python literal"),
        ({"call": "f(1)", "expect": "1 2"}, r"tests\[1\]: 'expect' is not a Python literal"),
        ({"call": "f(1)", "expect": "{[]}"}, r"tests\[1\]: 'expect' is not a Python literal"),
        ({"call": "1", "expect": "[" * 150 + "]" * 150}, r"tests\[1\]: 'expect' is not"),
    ],
)
def test_a_broken_test_is_named(test, message):
    with pytest.raises(UserError, match=message):
        sandbox.run_tests(ADD, [{"call": "1", "expect": "1"}, test])
    with pytest.raises(UserError, match=rf"^jobs\[1\]: {message}"):
        sandbox.run_many([(ADD, []), (ADD, [{"call": "1", "expect": "1"}, test])])


def test_other_arguments_are_checked():
    with pytest.raises(UserError, match="tests must be a list"):
        sandbox.run_tests(ADD, {"call": "1", "expect": "1"})
    with pytest.raises(UserError, match="code must be a string, not NoneType"):
        sandbox.run_tests(None, [])
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="timeout must be over 0"):
            sandbox.run_tests(ADD, [], timeout=timeout)
    with pytest.raises(UserError, match="stdin has 8388609 characters"):
        sandbox.run_program("", "x" * ((8 << 20) + 1))


@pytest.mark.parametrize("workers", [1, 3, None])
def test_a_batch_keeps_its_order(workers):
    jobs = [
        (f"import time\ntime.sleep({0.02 * (i % 3)})\nx = {i}", [{"call": "x", "expect": str(j)}])
        for i in range(12)
        for j in (i, i + 1)
    ]
    passed = [result.passed for result in sandbox.run_many(jobs, workers=workers)]
    assert passed == [1, 0] * 12
    assert sandbox.run_many([]) == []
