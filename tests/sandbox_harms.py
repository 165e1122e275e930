"""Hostile programs that would harm others; see sandbox_attacks.py for their form."""

READS = {
    "open": "return open(SECRET).read()",
    "relative path": "return open('../' * 20 + SECRET).read()",
    "file descriptor": "return os.read(os.open(SECRET, os.O_RDONLY), 99).decode()",
    "symbolic link": "os.symlink(SECRET, 'link'); return open('link').read()",
    "hard link": "os.link(SECRET, 'link'); return open('link').read()",
    "root of a process": "return open('/proc/self/root' + SECRET).read()",
    "libc": """
        libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(99)
        libc.read(libc.open(SECRET.encode(), 0), buffer, 99)
        return buffer.value.decode()""",
    "import system": """
        from importlib.machinery import SourceFileLoader
        return SourceFileLoader('x', SECRET).get_data(SECRET).decode()""",
    "traceback lines": "import linecache; return linecache.getline(SECRET, 1)",
    "another program": "return os.popen(f'cat {SECRET}').read()",
    "move here": "os.rename(SECRET, 'mine'); return open('mine').read()",
    "environment of the parent": """
        return 'SECRET' if b'=' in open(f'/proc/{PARENT}/environ', 'rb').read() else ''""",
    "memory of the parent": """
        return 'SECRET' if open(f'/proc/{PARENT}/mem', 'rb') else ''""",
    "file list": "return 'SECRET' if 'secret' in os.listdir(os.path.dirname(SECRET)) else ''",
    "the library's own packages": """
        import glob, sysconfig
        found = glob.glob(os.path.join(sysconfig.get_path('purelib'), '*', '*.py'))
        return 'SECRET' if found and open(found[0]).read() is not None else ''""",
}

WRITES = {
    "open": "open(OUTSIDE + '/new', 'w').write('x'); return 'harm'",
    "append": "open(SECRET, 'a').write('x'); return 'harm'",
    "truncate while reading": "os.open(SECRET, os.O_RDONLY | os.O_TRUNC); return 'harm'",
    "truncate by path": "os.truncate(SECRET, 0); return 'harm'",
    "truncate by access mode 3": "os.open(SECRET, 3 | os.O_TRUNC); return 'harm'",
    "delete": "os.unlink(SECRET); return 'harm'",
    "move out": "open('a', 'w').close(); os.rename('a', OUTSIDE + '/a'); return 'harm'",
    "link out": "open('a', 'w').close(); os.link('a', OUTSIDE + '/a'); return 'harm'",
    "through a symbolic link": """
        os.symlink(OUTSIDE, 'out')
        open('out/new', 'w').close()
        return 'harm'""",
    "new folder": "os.mkdir(OUTSIDE + '/folder'); return 'harm'",
    "permissions": "os.chmod(SECRET, 0o777); return 'harm'",
    "dates": "os.utime(SECRET, (0, 0)); return 'harm'",
    "named pipe": "os.mkfifo(OUTSIDE + '/pipe'); return 'harm'",
    "database": """
        import sqlite3
        sqlite3.connect(OUTSIDE + '/db').execute('create table t (x)')
        return 'harm'""",
    "library file": "open(os.__file__, 'a').close(); return 'harm'",
    "shared memory": "open(SHARED, 'w').close(); return 'harm'",
    "extended attribute": "os.setxattr(SECRET, 'user.x', b'x'); return 'harm'",
    "temp file of the system": """
        import tempfile
        with tempfile.NamedTemporaryFile(dir=OUTSIDE, delete=False): pass
        return 'harm'""",
}

NETWORK = {
    "tcp": "socket.create_connection(('127.0.0.1', PORT), 1).close(); return 'harm'",
    "udp": """
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', UDP_PORT))
        return 'harm'""",
    "unix socket": "socket.socket(socket.AF_UNIX).connect(UNIX); return 'harm'",
    "datagram from a socket pair": """
        socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', DATAGRAMS)
        return 'harm'""",
    "abstract socket": """
        socket.socket(socket.AF_UNIX).connect(ABSTRACT)
        return 'harm'""",
    "listen": "socket.create_server(('127.0.0.1', 0)); return 'harm'",
    "http": """
        import urllib.request
        urllib.request.urlopen(f'http://127.0.0.1:{PORT}/', timeout=0.2)
        return 'harm'""",
    "libc": """
        libc = ctypes.CDLL(None)
        if libc.socket(2, 1, 0) >= 0: return 'harm'""",
    "raw system call": """
        if ctypes.CDLL(None).syscall(SOCKET_CALL, 2, 1, 0) >= 0: return 'harm'""",
    "netlink": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); return 'harm'",
    "io_uring": """
        if ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(120)) >= 0:
            return 'harm'""",
}

PROCESSES = {
    "fork": """
        if os.fork() == 0: time.sleep(60)
        return 'harm'""",
    "fork bomb": """
        for _ in range(6): os.fork()
        time.sleep(60)""",
    "fork bomb through a new session": """
        for _ in range(5):
            if os.fork() == 0: os.setsid()
        time.sleep(60)""",
    "subprocess": "import subprocess; subprocess.Popen(['sleep', '60']); return 'harm'",
    "shell": "return 'harm' if os.system('true') == 0 else ''",
    "spawn": "os.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 60'], {}); return 'harm'",
    "replace": "os.execv('/bin/echo', ['echo', 'x'])",
    "multiprocessing": """
        import multiprocessing
        process = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
        process.start()
        return 'harm'""",
    "vfork by libc": """
        for _ in range(9):
            if ctypes.CDLL(None).fork() == 0: time.sleep(60)
        return 'harm' if ctypes.CDLL(None).fork() > 0 else ''""",
    "clone3 by number": """
        arguments = (ctypes.c_ulong * 11)()
        child = ctypes.CDLL(None).syscall(435, arguments, 88)
        if child == 0: time.sleep(60)
        return 'harm' if child > 0 else ''""",
    "pseudo-terminal": "import pty; pty.fork(); return 'harm'",
    "daemon": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
                time.sleep(60)
            os._exit(0)
        return 'harm'""",
    "daemon that closes its files": """
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 999)
            if os.fork() == 0:
                while True: time.sleep(1)
            os._exit(0)
        time.sleep(0.1)
        os._exit(0)""",
    "daemon that works later": """
        if os.fork() == 0:
            os.setsid()
            if os.fork(): os._exit(0)
            time.sleep(1)
            open(OUTSIDE + '/late', 'w').close()
        return ''""",
    "daemon by exit handler": """
        import atexit
        @atexit.register
        def later():
            if os.fork() == 0: time.sleep(60)
        sys.exit()""",
}

SIGNALS = {
    "kill": "os.kill(VICTIM, 9); return 'harm'",
    "kill the parent": "os.kill(PARENT, signal.SIGUSR1); return 'harm'",
    "thread of the parent": """
        if ctypes.CDLL(None).syscall(TGKILL_CALL, PARENT, PARENT, signal.SIGUSR1) == 0:
            return 'harm'""",
    "process descriptor": """
        signal.pidfd_send_signal(os.pidfd_open(VICTIM), 9)
        return 'harm'""",
    "queued signal": """
        if ctypes.CDLL(None).sigqueue(VICTIM, 9, 0) == 0: return 'harm'""",
    "group of the parent": "os.killpg(GROUP, signal.SIGUSR1); return 'harm'",
    "owner of a pipe": """
        import fcntl
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETOWN, VICTIM)
        fcntl.fcntl(reader, 10, 9)
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
        os.write(writer, b'x')
        return 'harm'""",
    "limits of another": """
        import resource
        resource.prlimit(VICTIM, resource.RLIMIT_CPU, (0, 0))
        return 'harm'""",
    "priority of another": "os.setpriority(os.PRIO_PROCESS, VICTIM, 19); return 'harm'",
    "trace another": """
        if ctypes.CDLL(None).ptrace(16, VICTIM, 0, 0) == 0: return 'harm'""",
    "memory of another": """
        local = (ctypes.c_ulong * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
        remote = (ctypes.c_ulong * 2)(HEAP, 8)
        if ctypes.CDLL(None).process_vm_readv(PARENT, local, 1, remote, 1, 0) > 0:
            return 'harm'""",
    "all there are": """
        if CONFINED: os.kill(-1, signal.SIGUSR1)""",
}

GADGETS = {
    "subclasses": """
        for kind in ().__class__.__base__.__subclasses__():
            if kind.__name__ == '_wrap_close':
                kind.__init__.__globals__['system']('touch ' + OUTSIDE + '/gadget')
        return open(SECRET).read()""",
    "subclasses' builtins": """
        for kind in object.__subclasses__():
            scope = getattr(kind.__init__, '__globals__', {})
            if 'sys' in scope:
                return scope['sys'].modules['io'].open(SECRET).read()""",
    "pickle": """
        import pickle
        class Gadget:
            def __reduce__(self): return os.system, ('touch ' + OUTSIDE + '/gadget',)
        pickle.loads(pickle.dumps(Gadget()))
        return pickle.loads(b'cbuiltins\\nopen\\n(V' + SECRET.encode() + b'\\ntR.').read()""",
    "ctypes": """
        ctypes.CDLL(None).system(b'touch ' + OUTSIDE.encode() + b'/gadget')
        return ctypes.pythonapi and open(SECRET).read()""",
    "code from memory": """
        descriptor = os.memfd_create('x')
        os.write(descriptor, b'#!/bin/sh\\ntouch ' + OUTSIDE.encode() + b'/gadget')
        os.execve(descriptor, ['x'], {})""",
}


# Steps towards an escape, where seccomp is in force.
ESCALATIONS = {
    "new privileges": """
        os.setuid(0)
        os.chroot('/')
        return 'harm'""",
    "new namespace": """
        if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0: return 'harm'""",
    "mount": """
        if ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None) == 0: return 'harm'""",
    "unmount the temp folder": """
        box = os.getcwd()
        os.chdir('/')
        if ctypes.CDLL(None).umount2(box.encode(), 2) == 0: return 'harm'""",
    "another root": """
        if ctypes.CDLL(None).chroot(b'.') == 0: return 'harm'""",
    "no more layers": """
        if ctypes.CDLL(None).prctl(22, 0, 0, 0, 0) == 0: return 'harm'""",
    "become traceable": """
        if ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0: return 'harm'""",
    "kernel keys": """
        if ctypes.CDLL(None).syscall(KEYCTL_CALL, 0, -3, 1) >= 0: return 'harm'""",
    "shared memory segment": """
        if sys.platform == 'linux':
            return 'harm' if ctypes.CDLL(None).shmget(4711, 4096, 0o1600) >= 0 else ''""",
}
