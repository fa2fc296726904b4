// Puts records with the AWS SDK for Go: producer STREAM FILE.
//
// A line of FILE is a partition key and data in base64; for each a line of output has the stream shard and the sequence
// number that it got, in order of the file. The endpoint and the keys are in the environment.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"
)

const batch = 50

func main() {
	ctx := context.Background()
	client := kinesis.New(kinesis.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(os.Getenv("AWS_ENDPOINT_URL_KINESIS")),
		Credentials:  aws.CredentialsProviderFunc(credentials),
	})
	entries, err := read(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	for len(entries) > 0 {
		count := min(batch, len(entries))
		output, err := client.PutRecords(ctx, &kinesis.PutRecordsInput{
			StreamName: aws.String(os.Args[1]), Records: entries[:count],
		})
		if err != nil {
			log.Fatal(err)
		}
		for _, result := range output.Records {
			if result.ErrorCode != nil {
				log.Fatal(*result.ErrorCode)
			}
			fmt.Println(*result.ShardId, *result.SequenceNumber)
		}
		entries = entries[count:]
	}
}

func credentials(context.Context) (aws.Credentials, error) {
	key, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
	return aws.Credentials{AccessKeyID: key, SecretAccessKey: secret}, nil
}

func read(path string) ([]types.PutRecordsRequestEntry, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var entries []types.PutRecordsRequestEntry
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		key, text, _ := strings.Cut(lines.Text(), " ")
		data, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, err
		}
		entries = append(entries, types.PutRecordsRequestEntry{PartitionKey: aws.String(key), Data: data})
	}
	return entries, lines.Err()
}
