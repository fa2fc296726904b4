package main

import (
	"crypto/md5"
	"encoding/binary"
	"fmt"
)

// Place returns the place of a tenant's shard among count shards; retired has the places of retired ones.
func Place(key string, count int, retired map[int]bool) int {
	text := key
	for attempt := 1; ; attempt++ {
		hash := md5.Sum([]byte(text))
		number := binary.BigEndian.Uint64(hash[:8])
		place, candidate := 0, 0
		for candidate < count {
			place = candidate
			number = number*2862933555777941757 + 1
			candidate = int(float64(place+1) * (float64(1<<31) / float64((number>>33)+1)))
		}
		if !retired[place] {
			return place
		}
		text = fmt.Sprintf("%s#%d", key, attempt)
	}
}
