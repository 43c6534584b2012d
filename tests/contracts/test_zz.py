import collections, tests.contracts.test_stateful as t
C=collections.Counter()
import inspect
orig=t.Network.agree
def agree(self, expected, call):
    name=inspect.stack()[1].function
    C[name, 'none' if expected is None else ('zero' if expected==0 else 'pos')]+=1
    return orig(self, expected, call)
t.Network.agree=agree
def test_c(deployed):
    t.test_the_contracts_do_what_their_mirror_does_and_keep_what_must_hold(deployed)
    for k,v in sorted(C.items()): print(k,v)
from tests.contracts.conftest import *
