#!/bin/sh
# gcc with its sanitizers for addresses and undefined behaviour; without most optimisations, which take it minutes.
exec gcc "$@" -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
