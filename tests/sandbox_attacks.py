"""Hostile programs by group, for test_sandbox.py.

Each entry is the body of `f`, or a whole program where it starts with "#". One of a harm gets to
`return "harm"`, or returns the text "SECRET" that it read. One of FORGERIES or TAMPERING would
have to return a random token that only the parent knows, the others anything at all.
"""

from __future__ import annotations

import textwrap

from sandbox_harms import ESCALATIONS, GADGETS, NETWORK, PROCESSES, READS, SIGNALS, WRITES

PRELUDE = "import ctypes, os, signal, socket, sys, time, threading\n{targets}\n"

MEMORY = {
    "bytes": "return 'harm' if len(bytes(1 << 30)) else ''",
    "list": """
        items = []
        while len(items) < 1 << 30: items += [0] * (1 << 20)
        return 'harm'""",
    "string": """
        text = 'x'
        while len(text) < 1 << 30: text += text
        return 'harm'""",
    "map": "import mmap; mmap.mmap(-1, 1 << 30); return 'harm'",
    "threads": """
        for _ in range(2000): threading.Thread(target=time.sleep, args=(60,)).start()
        return 'harm'""",
    "descriptors": """
        held = [os.dup(0) for _ in range(500)]
        return 'harm'""",
}

DISK = {
    "one large file": "open('big', 'wb').write(bytes(1 << 20) * 64); return 'harm'",
    "many files": """
        for i in range(1 << 20): open(str(i), 'w').close()
        return 'harm'""",
    "many large files": """
        for i in range(99): open(str(i), 'wb').write(bytes(8 << 20))
        return 'harm'""",
}

LOOPS = {
    "while": "while True: pass",
    "sleep": "time.sleep(60)",
    "at import": "#\nwhile True: pass",
    "in a thread": """
        threading.Thread(target=time.sleep, args=(60,)).start()
        time.sleep(60)""",
    "in C": "sum(range(10 ** 12))",
    "regular expression": "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "huge power": "return len(str(9 ** 9 ** 9))",
    "ignores signals": """
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True: pass""",
    "swallows exceptions": """
        while True:
            try: raise KeyboardInterrupt
            except BaseException: pass""",
    "waits for input": "sys.stdin.close(); r, _ = os.pipe(); os.read(r, 1)",
    "in a destructor": """
        class Endless:
            def __del__(self):
                while True: pass
        Endless()""",
    "in the shown exception": """
        class Endless(Exception):
            def __str__(self):
                while True: pass
        raise Endless""",
}

FLOODS = {
    "print": "while True: print('x' * 9999)",
    "standard error": "while True: sys.stderr.write('x' * 9999)",
    "all descriptors": """
        while True:
            for descriptor in range(99):
                try: os.write(descriptor, b'x' * 9999)
                except OSError: pass""",
    "returned text": "return 'x' * (32 << 20)",
    "returned lists": "return [[] for _ in range(1 << 20)]",
    "exception text": "raise ValueError('x' * (32 << 20))",
    "exception name": "raise type('E' * 99999, (Exception,), {})",
    "results": """
        for descriptor in range(3, 99):
            try:
                while True: os.write(descriptor, b'{"value": "x"}\\n' * 999)
            except OSError: pass""",
}

RECURSION = {
    "function": "return f()",
    "without a limit": "sys.setrecursionlimit(10 ** 9); return f()",
    "returned nesting": """
        value = []
        for _ in range(100000): value = [value]
        return value""",
    "returned cycle": "value = []; value.append(value); return value",
    "nested source": "#\nx = " + "(" * 5000 + ")" * 5000,
    "nested evaluation": "return eval('-' * 100000 + '1')",
    "shown": """
        class Deep(Exception):
            def __str__(self): return str(self)
        raise Deep""",
    "json": "import json; return json.loads('[' * 100000)",
    "attribute": """
        class Deep:
            def __getattr__(self, name): return getattr(self, name + 'x')
        return Deep().x""",
    "large stack": """
        threading.stack_size(64 << 20)
        sys.setrecursionlimit(10 ** 9)
        thread = threading.Thread(target=f); thread.start(); thread.join()""",
}

EARLY_EXITS = {
    "sys.exit": "#\nimport sys\nsys.exit(0)",
    "os._exit": "#\nimport os\nos._exit(0)",
    "SystemExit in a call": "raise SystemExit(0)",
    "os._exit in a call": "os._exit(0)",
    "SystemExit without arguments": "#\nraise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "abort": "os.abort()",
    "segmentation fault": "ctypes.string_at(0)",
    "kill itself": "os.kill(os.getpid(), 9)",
    "kill the worker": "os.kill(os.getppid(), 9)",
    "closes all descriptors": "os.closerange(0, 1 << 12)",
    "exit in a thread": "threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(9)",
    "nothing defined": "#\npass",
    "not Python": "#\ndef f(:",
    "null byte": "#\nx = '\0'",
    "lone surrogate": "#\nx = '\ud800'",
}

FORGERIES = {
    "prints a verdict": "#\nprint('{\"passed\": 1, \"total\": 1}'); print('1 passed in 0.01s')",
    "equal to everything": """
        class Equal:
            def __eq__(self, other): return True
            def __hash__(self): return 0
        return Equal()""",
    "text that is equal to everything": """
        class Equal(str):
            def __eq__(self, other): return True
            __hash__ = str.__hash__
        return Equal('x')""",
    "shows as anything": """
        class Shown:
            def __repr__(self): return 'TOKEN'
            __str__ = __reduce__ = __repr__
        return Shown()""",
    "type of another": """
        class Text:
            __class__ = str
        return Text()""",
    "not a number": "return float('nan')",
    "speaks for the child": """
        for descriptor in range(3, 99):
            try: os.write(descriptor, b'{"value": true}\\n{"value": null}\\n{"done": true}\\n')
            except OSError: pass
        os._exit(0)""",
    "passes by number": """
        for descriptor in range(3, 99):
            try: os.write(descriptor, b'{"passed": 1, "total": 1, "value": {"passed": 1}}\\n')
            except OSError: pass
        os._exit(0)""",
    "broken frames": """
        for descriptor in range(3, 99):
            try: os.write(descriptor, b'\\xff\\x00[[[[' * 999 + b'\\n"value"\\n[]\\n7\\n')
            except OSError: pass
        os._exit(0)""",
    "expected value in frames": """
        frame = sys._getframe()
        while frame:
            for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
                if isinstance(value, str) and value.startswith('token-'): return value
                if isinstance(value, dict) and 'expect' in value: return value['expect']
            frame = frame.f_back""",
    "expected value in memory": """
        import gc
        for thing in gc.get_objects():
            for item in gc.get_referents(thing):
                if isinstance(item, str) and item.startswith('token-') and len(item) > 20:
                    return item""",
    "expected value in raw memory": """
        for line in open('/proc/self/maps'):
            start, end = (int(x, 16) for x in line.split()[0].split('-'))
            found = ctypes.string_at(start, end - start).find(b'token-')""",
    "expected value in open files": """
        for descriptor in range(99):
            try: os.lseek(descriptor, 0, 0); text = os.read(descriptor, 1 << 20).decode()
            except (OSError, ValueError): continue
            if 'token-' in text: return text[text.index('token-'):][:38]""",
    "expected value in arguments": "return ' '.join([*sys.argv, *os.environ.values()])",
}

TAMPERING = {
    "replaces eval": "#\nimport builtins as b\nb.eval = b.compile = lambda *a, **k: 'token'",
    "replaces json": "#\nimport json\njson.dumps = lambda *a, **k: '{\"value\": true}'",
    "replaces the encoder": """#
import sys
for module in list(sys.modules.values()):
    if hasattr(module, 'encode'): module.encode = lambda value, depth=0: 'token'
def f(): return 1
""",
    "replaces every function of the grader": """#
import sys
for name, module in list(sys.modules.items()):
    if name.startswith('inside'):
        for key, value in list(vars(module).items()):
            if callable(value): setattr(module, key, lambda *a, **k: True)
""",
    "changes the grader's code": """#
import inside.program
inside.program._evaluate.__code__ = (lambda call, module, results: True).__code__
""",
    "traces the grader": """#
import sys
sys.settrace(lambda frame, event, argument: None)
sys.setprofile(lambda *a: setattr(sys.modules['solution'], 'f', lambda: True))
def f(): return 1
""",
    "replaces write": "#\nimport os\nos.write = lambda fd, data: len(data)\ndef f(): return 1",
    "hides builtins": "#\n__builtins__ = {}\nimport builtins\nvars(builtins).clear()",
    "exhausts the grader": "#\nimport sys\nsys.setrecursionlimit(30)\ndef f(): return 1",
    "changes the test list": """
        frame = sys._getframe()
        while frame:
            if 'calls' in frame.f_locals: frame.f_locals['calls'][:] = ['True']
            if 'request' in frame.f_locals: frame.f_locals['request']['calls'].clear()
            frame = frame.f_back""",
    "starts a trap at exit": """#
import atexit, os, sys
atexit.register(os._exit, 0)
sys.excepthook = lambda *a: os._exit(0)
sys.stdout = sys.stderr = None
""",
    "dies while shown": """
        class Nasty(Exception):
            def __str__(self): os._exit(0)
        raise Nasty""",
}

# What each group would achieve, as `layers()` calls it, or the layer that has to stop it; None:
# stopped on every system.
GROUPS: dict[str, tuple[str | None, dict[str, str]]] = {
    "read": ("reading files outside", READS),
    "write": ("changing files outside", WRITES),
    "network": ("network", NETWORK),
    "processes": ("starting processes", PROCESSES),
    "signals": ("signals to other processes", SIGNALS),
    "gadgets": ("reading files outside", GADGETS),
    "escalate": ("seccomp", ESCALATIONS),
    "memory": ("over 256 MB of memory", MEMORY),
    "disk": ("filling the disk", DISK),
    "loop": (None, LOOPS),
    "flood": (None, FLOODS),
    "recursion": (None, RECURSION),
    "exit": (None, EARLY_EXITS),
    "forge": (None, FORGERIES),
    "tamper": (None, TAMPERING),
}


def program(body: str, targets: dict[str, object]) -> str:
    """A whole program from an entry above."""
    assignments = "\n".join(f"{name} = {value!r}" for name, value in targets.items())
    prelude = PRELUDE.format(targets=assignments)
    if body.startswith("#"):
        return prelude + body
    return f"{prelude}def f():\n{textwrap.indent(textwrap.dedent(body).strip(), '    ')}\n"
