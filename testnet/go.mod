// What `make testnet` builds its validators from (testnet/geth.py). The last series of go-ethereum that seals Clique.
module freehold/testnet

go 1.21

require github.com/ethereum/go-ethereum v1.13.15
