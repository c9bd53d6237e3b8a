package tallyboard_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/tallyboard/tallyboard/clients/go/tallyboard"
)

func ExampleProducer() {
	conn, err := tallyboard.Dial("127.0.0.1:7411", tallyboard.WithTenant("acme"))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	producer, err := tallyboard.NewProducer(conn, tallyboard.ProducerOptions{
		OnFailure: func(failure tallyboard.Failure) {
			log.Printf("%s: %v", failure.Counter, failure.Err)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := producer.Send(ctx, []string{"post:42", "post:43"}, []int64{1, 2}); err != nil {
		log.Print(err)
	}
	if err := producer.Close(ctx); err != nil {
		log.Print(err)
	}
	fmt.Println(producer.Acknowledged())
}
