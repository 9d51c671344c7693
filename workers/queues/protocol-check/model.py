"""Exhaustive schedules over an in-memory directory tree.  An actor is a generator that yields one system call
and is sent its result; its next call is a pure function of (actor, results so far), so a state is
(tree, results of every actor, killed, multiset of events) and equal states are walked once; schedules are counted as paths.
Rules: the final wording, which is that of SPOOL.md.  Switches that are off in the final wording stand in P and are used as controls."""
import re, sys
sys.setrecursionlimit(100000)
ENOENT, EEXIST, ENOTEMPTY, EISDIR, EIO = 'ENOENT', 'EEXIST', 'ENOTEMPTY', 'EISDIR', 'EIO'
ERR = {ENOENT, EEXIST, ENOTEMPTY, EISDIR, EIO}
MOVES = ('rename', 'link', 'unlink', 'rename_nr', 'mkdir', 'rmdir')
def bad(r): return isinstance(r, str) and r in ERR
def par(p): return p.rsplit('/', 1)[0]
def at_n(p): return '@N' if p.startswith('N/') and '/tmp/' not in p else ''

class World:
    """f: path -> (inode, content, old); d: directories; g: sorted events (kind, who, content)"""
    def __init__(s, f, d, g): s.f, s.d, s.g = f, d, g
    def key(s): return frozenset(s.f.items()), s.d, s.g
    def ev(s, *e): return tuple(sorted(s.g + (e,)))
    def do(s, who, op):
        k, f, d, g = op[0], s.f, s.d, s.g
        if k == 'nop': return (World(f, d, s.ev(op[1], who, op[2])) if len(op) > 1 else s), 'ok'
        if k == 'await': return s, 'ok'
        if k == 'list':
            if op[1] not in d: return s, ENOENT
            pre = op[1] + '/'; n = len(pre)
            return s, tuple(sorted({p[n:].split('/')[0] for p in f if p.startswith(pre)} | {x[n:].split('/')[0] for x in d if x.startswith(pre)}))
        if k == 'lstat':
            if op[1] in d: return s, 'DIR'
            return s, f.get(op[1], ENOENT)
        if k == 'look':                                    # a listing of leases/: the highest number, and (for the check alone) the good beats so far
            ns = [int(p.rsplit('.', 1)[1]) for p in f if p.startswith(op[1] + '.')]
            return s, (max(ns) if ns else None, sum(1 for e in g if e[0] == 'beat'))
        if k == 'set':                                     # a word on the board (shared memory)
            f = dict(f); f[op[1]] = ('', op[2], 0); return World(f, d, g), 'ok'
        if k == 'get': return s, (f[op[1]][1] if op[1] in f else None)
        if k == 'create':
            p, c = op[1], op[2]
            if par(p) not in d: return s, ENOENT
            if p in f: return s, EEXIST
            f = dict(f); f[p] = (f'{who}:{p}', c, 0)
            return World(f, d, s.ev(op[3], who, c) if len(op) > 3 else g), 'ok'
        if k == 'unlink':
            p = op[1]
            if p not in f: return s, ENOENT
            c = f[p][1]; f = dict(f); del f[p]
            return World(f, d, s.ev(op[2] + at_n(p), who, c) if len(op) > 2 else g), 'ok'
        if k == 'mkdir':
            if op[1] in d: return s, EEXIST
            if par(op[1]) not in d: return s, ENOENT
            return World(f, d | {op[1]}, g), 'ok'
        if k == 'rmdir':
            if op[1] not in d: return s, ENOENT
            if any(p.startswith(op[1] + '/') for p in f): return s, ENOTEMPTY
            return World(f, d - {op[1]}, g), 'ok'
        if k in ('rename', 'link', 'rename_nr'):
            a, b = op[1], op[2]
            if a not in f or par(b) not in d: return s, ENOENT
            if b in d: return s, EISDIR
            e = f[a]
            if k != 'rename' and b in f: return s, EEXIST
            f = dict(f); w = World(f, d, g)
            if k == 'rename' and b in f:
                v = f[b]
                if v[0] == e[0]: return World(f, d, s.ev('SAMEINODE', who, e[1])), 'ok'   # POSIX: two links of one inode: nothing happens
                w = World(f, d, s.ev('OVERWRITE' if v[1] != e[1] else 'merge', who, v[1]))
            if k != 'link': del f[a]
            c = op[4] if len(op) > 4 else e[1]              # a hard link is followed as a message of its own
            f[b] = (e[0], c, 0)
            if len(op) > 3 and op[3]: w.g = w.ev(op[3] + ('' if op[3] == 'fput' else at_n(a)), who, c)
            return w, 'ok'
        if k == 'tick': return World({p: (i, c, 1) for p, (i, c, o) in f.items()}, d, s.ev('tick', who, '-')), 'ok'
        raise ValueError(k)

class Explore:
    def __init__(s, actors, world, check, crashable=(), crashes=0, lost_reply=0, lossy=()):
        s.actors, s.check, s.crashable, s.lossy = actors, check, set(crashable), set(lossy)
        s.cache, s.memo, s.names = {}, {}, [n for n, _ in actors]
        s.start = (world, tuple(() for _ in actors), (False,) * len(actors), crashes, lost_reply)
    def next_op(s, i, hist):
        k = (i, hist)
        if k not in s.cache:
            gen = s.actors[i][1]()
            try:
                op = next(gen)
                for r in hist: op = gen.send(r)
            except StopIteration: op = None
            s.cache[k] = op
        return s.cache[k]
    def walk(s, st):
        w, hs, cr, nc, nl = st
        key = (w.key(), hs, cr, nc, nl)
        if key in s.memo: return s.memo[key]
        total, badn, best, any_ = 0, {}, {}, False
        def merge(step, res):
            nonlocal total
            t, bn, bs = res; total += t
            for k, v in bn.items(): badn[k] = badn.get(k, 0) + v
            for k, v in bs.items():
                if k not in best or v[0] + 1 < best[k][0]: best[k] = (v[0] + 1, step, v)
        for i in range(len(hs)):
            if cr[i]: continue
            op = s.next_op(i, hs[i])
            if op is None: continue
            if op[0] == 'await' and not any(e[0] == op[1] and (len(op) < 3 or e[1] == op[2]) for e in w.g): continue
            any_ = True
            txt = f'{s.names[i]}: {" ".join(map(str, op))}'
            def nxt(r): return hs[:i] + (hs[i] + (r,),) + hs[i+1:]
            w2, r = w.do(s.names[i], op)
            merge(f'{txt} -> {r}', s.walk((w2, nxt(r), cr, nc, nl)))
            if nl and i in s.lossy and op[0] in MOVES and r == 'ok':
                ans = EEXIST if op[0] in ('link', 'rename_nr', 'mkdir') else ENOENT
                merge(f'{txt} -> DONE but answered {ans}', s.walk((w2, nxt(ans), cr, nc, nl - 1)))
                merge(f'{txt} -> NOT done, answered EIO', s.walk((w, nxt(EIO), cr, nc, nl - 1)))
            if nc and i in s.crashable:
                cr2 = cr[:i] + (True,) + cr[i+1:]
                merge(f'{s.names[i]}: KILLED before {" ".join(map(str, op))}', s.walk((World(w.f, w.d, w.ev('killed', s.names[i], '-')), hs, cr2, nc - 1, nl)))
        if not any_:
            total = 1
            for k in s.check(w, hs, cr): badn[k] = 1; best[k] = (0, None, None)
        s.memo[key] = (total, badn, best)
        return s.memo[key]
    def run(s): return s.walk(s.start)

# ---------------------------------------------------------------- the protocol
class P:
    fresh_claim = True     # every claim writes a fresh token (control: an old mark is kept)
    requeue_fresh = True   # requeue writes a fresh token (control: keeps it)
    left_fresh = True      # a file without a mark in an owner's directory goes to errors/ under a fresh mark (control: as it is called)
    in_fresh = False       # release, due and a worker's own release into incoming/ write a fresh token too (proposed)
    look = True            # own directory is listed after an unknown error, when idle and at exit
    gap = 'after-open'     # done's ENOENT: lease judged after it, open gap included; 'after-closed', 'before': controls
MARK = re.compile(r't(\d)c(\d)-([A-Za-z0-9+_]+)~(.+)')
def split(n):
    m = MARK.fullmatch(n)
    return (int(m[1]), int(m[2]), m[3], m[4]) if m else (0, 0, None, n)
def join(t, c, tok, n): return f't{t}c{c}-{tok}~{n}'
def fresh(n, tok):
    t, c, old, n = split(n)
    return join(t, c, old if old and not P.fresh_claim else tok, n)
def bump(n, dt=0, dc=0, new=None):
    t, c, tok, n = split(n); return join(t + dt, c + dc, new if new and P.in_fresh else tok, n)

def worker(me, settle='done', claims=1, looks=1, Q='Q', N='N', board=None, owner=None, handler=None, after=None, stop=True, gap=False, exits=True, order='board-mkdir', clear='after', bye=False):
    """board, mkdir, then per message: claim, handle, settle; idle and exit scans of the own directory; board = slot on the board or None.
    handler: 'rm' removes the input, 'left' leaves a file beside it.  gap: takes a fresh OWNER before its second claim."""
    def gen():
        k = 0; no = 0; got = 0
        name = lambda: f'{owner or me}' + (f'+{no}' if no else '')
        O = None; tried = set()
        def make():
            nonlocal no, O
            while True:
                O = f'{Q}/pending/{name()}'
                if board and order == 'board-mkdir': yield ('set', board, name())
                r = yield ('mkdir', O)
                if board and order == 'mkdir-board': yield ('set', board, name())
                if r == 'ok': return
                no += 1                                    # EEXIST or unknown: draw again, never used twice
        def scan():                                        # adopt or release what the worker tried to claim
            l = yield ('list', O)
            if bad(l): return
            for x in l:
                if split(x)[2] is None:
                    yield ('rename', f'{O}/{x}', f'{Q}/errors/{join(0, 0, me + "L", x) if P.left_fresh else x}', 'left')
                else: yield ('rename', f'{O}/{x}', f'{Q}/incoming/{x}', 'release')
        if after: yield ('await',) + after
        yield from make()
        for turn in range(looks):
            if got >= claims: break
            if gap and turn == 1: no += 1; yield from make(); yield ('nop', 'gap', '-')
            names = yield ('list', f'{Q}/incoming')
            for n in names:
                if got >= claims: break
                k += 1; t = fresh(n, f'{me}{k}')
                r = yield ('rename', f'{Q}/incoming/{n}', f'{O}/{t}', 'claim')
                ok = r == 'ok'
                if r == ENOENT or r == EIO:
                    l = yield ('list', O)
                    if l == ENOENT:                        # taken for dead while stopped
                        no += 1; yield from make()
                        k += 1; t = fresh(n, f'{me}{k}')
                        r = yield ('rename', f'{Q}/incoming/{n}', f'{O}/{t}', 'claim'); ok = r == 'ok'
                        if r in (ENOENT, EIO) and P.look: l = yield ('list', O); ok = not bad(l) and t in l
                    elif P.look: ok = not bad(l) and t in l
                if not ok: continue
                got += 1
                src = f'{O}/{t}'
                if handler == 'rm': yield ('unlink', src, 'handler-rm')
                if handler == 'left': yield ('create', f'{O}/out.txt', f'left{me}{k}', 'accepted')
                yield from do_settle(me, settle, O, t, Q, N)
                if handler == 'left': yield from scan()
        if P.look and stop: yield from scan()
        if exits and stop:
            if board and clear == 'before': yield ('set', board, None)
            yield ('rmdir', O)
            if board and clear == 'after': yield ('set', board, None)
            if bye: yield ('nop', 'bye', '-')
    return gen

def do_settle(me, settle, O, t, Q, N):
    src = f'{O}/{t}'
    if settle == 'keep': yield ('nop',); return
    if settle == 'forget': return
    if settle == 'put+done':                               # forward with a new body or to another filesystem
        e = yield ('lstat', src)
        if bad(e): return
        yield ('create', f'{N}/tmp/{me}', e[1])
        yield ('rename', f'{N}/tmp/{me}', f'{N}/incoming/n{me}', 'fput')
        yield ('unlink', src, 'forward'); return
    for again in (0, 1):
        if settle == 'done':
            if P.gap == 'before': seen = yield ('get', 'B/lapse')
            r = yield ('unlink', src, 'done')
        elif settle == 'retry': r = yield ('rename', src, f'{Q}/deferred/17.{bump(t, dt=1)}', 'retry')
        elif settle == 'reject': r = yield ('rename', src, f'{Q}/errors/{t}', 'reject')
        elif settle == 'release': r = yield ('rename', src, f'{Q}/incoming/{t}', 'release')
        elif settle == 'forward':
            _, _, tok, n = split(t); r = yield ('rename', src, f'{N}/incoming/{join(0, 0, tok, n)}', 'forward')
        if r == 'ok': return
        l = yield ('list', O)
        if not bad(l) and t in l and again == 0: continue  # not done: again
        break
    if settle == 'done':                                   # ENOENT and not there: ours when the lease was valid throughout
        if P.gap == 'after-open': seen = yield ('get', 'B/lapse')
        elif P.gap == 'after-closed': seen = yield ('get', 'B/gap')
        yield ('nop', 'counted-lost' if seen else 'counted-done', split(t)[2])

def keeper(me, dead=(), Q='Q', passes=1, due=True, burn=0, after=None, rm=True, flat=False, tmp=False):
    """releases the owners whose name (up to +) is in dead; moves what is due; the age rules"""
    def gen():
        k = 0
        if after: yield ('await',) + after
        for _ in range(passes):
            if dead:
                ps = yield ('list', f'{Q}/pending')
                for o in ps:
                    if o.split('+')[0] in dead:
                        yield from release(me, Q, o, burn, rm)
            if due:
                for n in (yield ('list', f'{Q}/deferred')):
                    k += 1; yield ('rename', f'{Q}/deferred/{n}', f'{Q}/incoming/{bump(n.split(".", 1)[1], new=f"{me}d{k}")}', 'due')
            if flat:
                for n in (yield ('list', f'{Q}/pending')):
                    e = yield ('lstat', f'{Q}/pending/{n}')
                    if bad(e) or e == 'DIR' or not e[2] or (flat == 'unique' and split(n)[3].startswith('r')): continue
                    k += 1
                    yield ('rename', f'{Q}/pending/{n}', f'{Q}/incoming/{join(*split(n)[:2], f"{me}f{k}", split(n)[3])}', 'released')
            if tmp:
                for n in (yield ('list', f'{Q}/tmp')):
                    e = yield ('lstat', f'{Q}/tmp/{n}')
                    if bad(e) or not e[2]: continue
                    k += 1
                    yield ('rename', f'{Q}/tmp/{n}', f'{Q}/errors/{join(0, 0, f"{me}t{k}", n)}', 'tmpsaved')
    return gen
def release(me, Q, o, burn, rm=True):
    O = f'{Q}/pending/{o}'
    names = yield ('list', O)
    if bad(names): return
    for n in names:
        if split(n)[2] is None: yield ('rename', f'{O}/{n}', f'{Q}/errors/{join(0, 0, me + "L", n) if P.left_fresh else n}', 'left')
        else: yield ('rename', f'{O}/{n}', f'{Q}/incoming/{bump(n, dc=burn, new=me + split(n)[2])}', 'released')
    if rm: yield ('rmdir', O)

def board_keeper(me, master='M', order='list-first', slots=('B/w0',), Q='Q', passes=1, after=None, burn=0):
    """the keeper of one master at its start: every owner of its master that the board does not list"""
    def gen():
        if after: yield ('await',) + after
        for _ in range(passes):
            if order == 'board-first':
                b = set()
                for x in slots: b.add((yield ('get', x)))
            ps = yield ('list', f'{Q}/pending')
            if order == 'list-first':
                b = set()
                for x in slots: b.add((yield ('get', x)))
            for o in ps:
                if o.startswith(master) and o not in b: yield from release(me, Q, o, burn)
    return gen

def operator(me, how, Q='Q', n=1, cont='x', edit=True):
    """brings a file of errors/ back: 'link', 'copy' (through his own tmp file), 'mv', 'cli' (our requeue)"""
    def gen():
        k = 0
        for _ in range(n):
            for x in (yield ('list', f'{Q}/errors')):
                e = yield ('lstat', f'{Q}/errors/{x}')
                if bad(e): continue
                k += 1
                if how == 'link': yield ('link', f'{Q}/errors/{x}', f'{Q}/incoming/{x}', 'accepted', f'{e[1]}{cont}{k}')
                elif how == 'copy':
                    yield ('create', f'X/{me}{k}', f'{e[1]}{cont}{k}')
                    yield ('rename_nr', f'X/{me}{k}', f'{Q}/incoming/{x}', 'accepted')
                elif how == 'mv': yield ('rename_nr', f'{Q}/errors/{x}', f'{Q}/incoming/{x}', 'requeued')
                elif how == 'cli':
                    t, c, tok, nm = split(x)
                    yield ('rename', f'{Q}/errors/{x}', f'{Q}/incoming/{join(0, 0, f"{me}q{k}" if P.requeue_fresh else tok, nm)}', 'requeued')
    return gen

def put(me, c, name, Q='Q', mode='rename'):
    def gen():
        x = f'{Q}/tmp/{me}'
        yield ('create', x, c)
        if mode == 'rename': yield ('rename', x, f'{Q}/incoming/{name}', 'accepted')
        elif mode == 'link':
            yield ('link', x, f'{Q}/incoming/{name}', 'accepted'); yield ('unlink', x)
        elif mode == 'nr':
            r = yield ('rename_nr', x, f'{Q}/incoming/{name}', 'accepted')
            if r == EEXIST: yield ('unlink', x)
        elif mode == 'delay': yield ('rename', x, f'{Q}/deferred/17.{join(0, 0, me + "d", name)}', 'accepted')
    return gen

def producer(me, c, name, Q='Q', after=None):               # foreign: drops report.csv, does not replace a waiting file
    def gen():
        if after: yield ('await', after)
        yield ('create', f'X/{me}', c)
        yield ('rename_nr', f'X/{me}', f'{Q}/incoming/{name}', 'accepted')
    return gen

def mentat(me, Q='Q', N=None, looks=1, settle='done', claims=1):
    def gen():
        got = 0
        for _ in range(looks):
            for n in reversed((yield ('list', f'{Q}/incoming'))):
                if got >= claims: return
                r = yield ('rename', f'{Q}/incoming/{n}', f'{Q}/pending/{n}', 'claim')
                if r != 'ok': continue
                got += 1
                if settle == 'done': yield ('unlink', f'{Q}/pending/{n}', 'done')
                elif settle == 'reject': yield ('rename', f'{Q}/pending/{n}', f'{Q}/errors/{n}', 'reject')
                elif settle == 'forward':
                    r = yield ('rename', f'{Q}/pending/{n}', f'{N}/tmp/{n}')
                    if r == 'ok': yield ('rename', f'{N}/tmp/{n}', f'{N}/incoming/{n}', 'forward')
    return gen

def tick(n=1):
    def gen():
        for _ in range(n): yield ('tick',)
    return gen
def call(*ops):                                             # an actor that makes these calls, whatever they answer
    def gen():
        for o in ops: yield o
    return gen

def world(files=(), dirs=(), qs=('Q', 'N')):
    d = {'X', 'B'} | set(qs)
    for q in qs: d |= {f'{q}/{x}' for x in ('tmp', 'incoming', 'pending', 'deferred', 'errors', '.pool', '.pool/leases')}
    f = {p: (f'i{p}', c, o) for p, c, o in files}
    return World(f, frozenset(d | set(dirs)), tuple(sorted(('accepted', 'init', c) for p, c, o in files if '/.pool/' not in p and not p.startswith('B/'))))

SETTLES = {'done', 'forward'}
def check(live=(), strict_handled=False):
    """live: owner directories whose owner lives for ever and has made its last idle scan.  (…) = allowed, only counted"""
    def f(w, hs, cr):
        out = set(); g = w.g
        by = {}
        for k, who, c in g: by.setdefault(c, []).append((k, who))
        for k, who, c in g:
            if k == 'OVERWRITE': out.add('OVERWRITE of a different message')
            if k == 'merge': out.add('(merge of two copies of one message)')
            if k == 'SAMEINODE': out.add('(rename between two links of one inode: did nothing)')
        names = {}
        for p, (i, c, o) in w.f.items():
            if p[:2] in ('X/', 'B/') or '/.pool/' in p: continue
            names.setdefault(c, []).append(p)
        for c in {c for k, _, c in g if k == 'accepted'}:
            ks = by[c]; n = lambda *x: sum(1 for k, _ in ks if k in x)
            ns = [p for p in names.get(c, []) if '/tmp/' not in p]
            inQ = [p for p in ns if p.startswith('Q/') and '/errors/' not in p]
            if not ns and not n('done', 'forward', 'done@N', 'handler-rm'):
                out.add('STRANDED in tmp/' if names.get(c) else 'LOST: no name, never settled')
            if n(*SETTLES) > 1: out.add('TWO SETTLES in one queue')
            if n('done@N') > 1: out.add('(done twice in the next queue)')
            if n('fput') > 1: out.add('(put twice into the next queue)')
            if n(*SETTLES) and inQ: out.add('SETTLED, and queued again')
            if n('handler-rm') and inQ: out.add('removed by the handler, and queued again')
            if len(ns) > 1: out.add('(two names of one message)')
            if n('claim') > 1: out.add('(handled twice)')
            held = {who for k, who in ks if k.split('@')[0] == 'claim'}
            for k, who in ks:
                if k.split('@')[0] in ('done', 'reject', 'retry', 'release', 'again', 'handler-rm') and who not in held: out.add('SETTLED OR REMOVED by one who never held it')
            for p in ns:
                if '/pending/' in p:
                    o = p.split('/pending/')[1].split('/')
                    if len(o) > 1 and o[0].split('+')[0] in live: out.add("STRANDED in a live owner's directory")
                    if len(o) == 1: out.add('(left as flat claim: only the age rule finds it)')
        return out
    return f

def show(title, actors, w, chk, verbose=True, **kw):
    e = Explore(actors, w, chk, **kw); n, b, best = e.run()
    hard = {k: v for k, v in b.items() if not k.startswith('(')}
    print(f'{"CLEAN" if not hard else "HOLE "} {title}: {n:,} schedules, {len(e.memo):,} states')
    for k in sorted(b): print(f'      {k}: {b[k]:,}')
    if verbose:
        for k in hard:
            print(f'    shortest for {k}:'); v = best[k]
            while v[1]: print('        ', v[1]); v = v[2]
    sys.stdout.flush()
    return n, b, best
def reset(**k):
    P.fresh_claim = P.requeue_fresh = P.left_fresh = P.look = True; P.in_fresh = False; P.gap = 'after-open'
    for a, b in k.items(): setattr(P, a, b)
